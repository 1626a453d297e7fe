"""What a file of this project holds: checked before it is written, and before anything in it is believed.

A checkpoint is a plain dict that torch.load(path, weights_only=True) opens: kind, name, format, state (tensors), config
(rebuilds the object), settings (the parameters that made it), lineage (name and SHA-256 of each file that it was made
from), metrics, versions. An evaluation is the same as JSON.
"""

import hashlib
import io
import json
import pickle
import platform
import sys
import zipfile

import numpy
import torch

from ..processor import hardware
from .disk import ABSENT, WorkspaceError, reason, retry, unreadable, unwritten, write_atomic

FORMAT = 1
MADE_BY = {"cvae": "01_train_cvae", "fim": "02_compute_fim", "amnesiac": "03_forget", "samples": "04_sample",
           "evaluation": "05_evaluate"}
OF_WEIGHTS = ("cvae", "fim", "amnesiac", "classifier")  # kinds whose state has to be finite numbers


def kind_of(name):
    """What a file holds, by its name: 'fim-cvae.pt' holds a 'fim'."""
    return name.split(".")[0].split("-")[0]


def remedy(name):
    """The sentence that says how to get a good file of this name."""
    kind = kind_of(name)
    if ".unfinished." in name:
        return "Without it the run starts anew."
    if kind == "classifier":
        return "A judge that is missing is trained where it is asked for."
    if kind not in MADE_BY:
        return "No notebook makes a file of this name: see whether the parameter `model` is spelt right."
    model = name.removeprefix("fim-").removesuffix(".pt")
    chosen = f' with model="{model}"' if kind == "fim" and model != "cvae" else ""
    return f"Run {MADE_BY[kind]}.ipynb{chosen} to make it."


def versions():
    """Versions and hardware, for the record in every file."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__,
            "hardware": hardware()}


def checksum(content):
    """SHA-256 of plain values, as JSON writes them."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def plain(value):
    """The same value, of plain dicts and lists, with equal strings as one object.

    pickle writes an object once and points to it from then on, so the bytes would tell a string that was read from a file
    from an equal one in the code: a run that went on from its progress from one that was never cut off.
    """
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return sys.intern(value) if type(value) is str else value


def pack(name, content):
    """The bytes of a file of this name: torch.save's, or JSON with a checksum, so that no altered figure passes."""
    if name.endswith(".json"):
        return json.dumps({**content, "sha256": checksum(content)}, indent=1).encode()
    file = io.BytesIO()
    torch.save(plain(content), file)
    return file.getvalue()


def unpack(name, packed):
    """The dict that was packed, checked, and nothing unpickled. Raises ValueError and others if anything is amiss."""
    if name.endswith(".json"):
        content = json.loads(packed)
        if content.pop("sha256") != checksum(content):
            raise ValueError("wrong checksum")
    else:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:  # torch.load itself does not look at the checksums
            if broken := archive.testzip():
                raise ValueError(f"wrong checksum of {broken}")
        try:
            content = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # whose own text offers to run whatever is in there
            raise ValueError("it holds more than tensors and plain values") from error
        except RuntimeError as error:
            if "memory" in str(error):  # torch's allocator does not raise MemoryError
                raise MemoryError(str(error)) from error
            raise
    if content["format"] != FORMAT:
        return content  # whoever wrote it knows what is to be in it
    if missing := {"kind", "name", "settings", "lineage"} - content.keys():
        raise ValueError(f"without {', '.join(sorted(missing))}")
    if content["kind"] != kind_of(content["name"]):
        raise ValueError(f"{content['name']} that calls itself a {content['kind']}")
    if content["kind"] in OF_WEIGHTS and not all(weight.isfinite().all() for weight in content["state"].values()):
        raise ValueError("some of its weights are no finite numbers")
    return content


def save(path, content):
    """Writes a dict of plain values and tensors, settings and lineage among them, once Saved is sure to read it again.

    Kind, name, format and versions are added. Raises WorkspaceError, with what was at `path` untouched.
    """
    content = {"kind": kind_of(path.name), "name": path.name, "format": FORMAT, **content, "versions": versions()}
    try:
        packed = pack(path.name, content)
        unpack(path.name, packed)
    except MemoryError as error:
        raise unwritten(path, error) from error
    except Exception as error:  # as many kinds as in Saved
        raise WorkspaceError(f"{path.name} was not written, for nothing could read it again ({reason(error)}). What was "
                             "there before is untouched.") from error
    write_atomic(path, packed)


class Saved:
    """A file that was read and checked.

    path, name and digest (SHA-256) are the file's own. Its entries are attributes too: saved.state, saved.settings, …
    Raises WorkspaceError if it is damaged or not what its name says, and Unreadable if it could not be read.
    """

    def __init__(self, path):
        self.path, self.name = path, path.name

        def read():
            packed = path.read_bytes()  # once: another run may replace the file at any moment
            return hashlib.sha256(packed).hexdigest(), unpack(self.name, packed)

        try:
            self.digest, self.content = retry(read)
        except ABSENT as error:
            raise WorkspaceError(f"{path} is not there any more. {remedy(self.name)}") from error
        except (OSError, MemoryError) as error:
            raise unreadable(path, error) from error
        except Exception as error:  # zip, pickle and JSON break in a dozen ways, and all of them mean this
            raise WorkspaceError(f"{path} is damaged, or not a file of this project ({reason(error)}). Delete it. "
                                 f"{remedy(self.name)}") from error
        if self.format != FORMAT:
            raise WorkspaceError(f"{path} has format {self.format}, and this version reads format {FORMAT}: update the "
                                 f"project, or delete the file. {remedy(self.name)}")
        if self.content["name"] != self.name:
            raise WorkspaceError(f"{path} holds what was saved as {self.content['name']}. Delete or rename it. "
                                 f"{remedy(self.name)}")
        if "moments" in self.content.get("metrics", {}):    # what snapshot_steps was called before November 2026
            self.metrics["snapshot_steps"] = self.metrics.pop("moments")

    def __getattr__(self, key):
        """An entry. Python asks here only for what is no attribute, so no entry can pass for the path or the digest."""
        try:
            return vars(self)["content"][key]
        except KeyError:
            raise AttributeError(f"{vars(self).get('path')} holds no {key!r}") from None

    def build(self, cls, device):
        """The object that was saved: cls(**config) with its state, on `device`, in eval mode.

        Raises WorkspaceError for a model that cls does not rebuild, one that was edited in notebook 01 among them.
        """
        if "edited" in self.settings:
            raise WorkspaceError(f"{self.path} holds a CVAE that was edited in 01_train_cvae.ipynb, and only that notebook "
                                 "can rebuild it. To go on with it, make the same change in notebooks/amnesia/models.py and "
                                 "run that notebook again; to go on without it, move the file away.")
        try:
            built = cls(**self.config)
            built.load_state_dict(self.state)
        except (AttributeError, TypeError, RuntimeError) as error:
            raise WorkspaceError(f"{self.path} does not hold a {cls.__name__} ({error}).") from error
        return built.to(device).eval()
