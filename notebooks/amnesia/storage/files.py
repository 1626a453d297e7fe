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
import struct
import sys
import zipfile
import zlib

import numpy
import torch

from ..processor import hardware
from .disk import ABSENT, WorkspaceError, read_whole, reason, unreadable, unwritten, write_atomic

FORMAT = 1
MADE_BY = {"cvae": "01_train_cvae", "fim": "02_compute_fim", "amnesiac": "03_forget", "samples": "04_sample",
           "evaluation": "05_evaluate", "denoiser": "studies/12_diffusion"}
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, OSError, OverflowError, RuntimeError,
              ValueError)  # what zipfile raises at bytes that are no whole archive
torch.save({}, io.BytesIO())  # which imports some of torch, late: by then it may be out of this user's reach
OF_WEIGHTS = ("cvae", "fim", "amnesiac", "classifier", "denoiser")  # kinds whose state has to be finite numbers


class Damaged(ValueError):
    """Bytes that are positively recognised as broken: an archive, a checksum, an entry."""


class Foreign(ValueError):
    """Bytes that this project did not write: another's checkpoint, say."""


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
    if kind_of(model) == "denoiser":
        kind = "denoiser"
    chosen = f' with model="{model}"' if kind == "fim" and model != "cvae" else ""
    return f"Run {MADE_BY[kind]}.ipynb{chosen} to make it."


def versions():
    """Versions and hardware, for the record in every file."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__,
            "hardware": hardware()}


def checksum(content):
    """SHA-256 of plain values, as JSON writes them."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def interned(value):
    """The same value, of plain dicts and lists, with equal strings as one object.

    pickle writes an object once and points to it from then on, so the bytes would tell a string that was read from a file
    from an equal one in the code: a run that went on from its progress from one that was never cut off.
    """
    if isinstance(value, dict):
        return {interned(key): interned(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(interned, value))
    return sys.intern(value) if type(value) is str else value


def to_bytes(name, content):
    """The bytes of a file of this name: torch.save's, or JSON with a checksum, so that no altered figure passes."""
    if name.endswith(".json"):
        return json.dumps({**content, "sha256": checksum(content)}, indent=1).encode()
    file = io.BytesIO()
    torch.save(interned(content), file)
    return file.getvalue()


def from_bytes(name, packed):
    """The dict in these bytes, checked, and nothing unpickled.

    Raises Damaged for what is recognised as broken, and Foreign for a file that this project did not write. Whatever else
    is raised says nothing of the file, as a MemoryError or a module that cannot be imported.
    """
    content = (json_content if name.endswith(".json") else torch_content)(packed)
    if not isinstance(content, dict) or [type(content.get(key)) for key in ("kind", "name", "format")] != [str, str, int]:
        raise Foreign("without kind, name and format")
    if content["format"] != FORMAT:
        return content  # whoever wrote it knows what is to be in it
    for key in {"settings", "lineage"} | content.keys() & {"config", "metrics"}:
        if not isinstance(content.get(key), dict) or not all(isinstance(name, str) for name in content[key]):
            raise Damaged(f"its {key} is no dict by names")
    try:
        checksum([content["settings"], content["lineage"]])
    except (TypeError, ValueError) as error:
        raise Damaged(f"its settings or its lineage: {error}") from error
    if content["kind"] != kind_of(content["name"]):
        raise Damaged(f"{content['name']} that calls itself a {content['kind']}")
    if content["kind"] in OF_WEIGHTS:
        state = content.get("state")
        if not (isinstance(state, dict) and all(isinstance(weight, torch.Tensor) and weight.is_floating_point()
                                                and weight.isfinite().all() for weight in state.values())):
            raise Damaged("its state is no dict of tensors that hold finite real numbers, as weights are")
    return content


def json_content(packed):
    """What JSON holds, once its checksum is right."""
    try:
        content = json.loads(packed)
    except (ValueError, RecursionError) as error:
        raise Damaged(reason(error)) from error
    if not isinstance(content, dict) or "sha256" not in content:
        raise Foreign("without a checksum")
    if content.pop("sha256") != checksum(content):
        raise Damaged("wrong checksum")
    return content


def torch_content(packed):
    """What a torch file holds, once its archive's checksums are right, which torch.load itself does not look at."""
    if packed and not packed.startswith(b"PK"):
        raise Foreign("no zip archive, as torch.save makes them")
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            broken = archive.testzip()
    except BROKEN_ZIP as error:
        raise Damaged(reason(error)) from error
    if broken:
        raise Damaged(f"wrong checksum of {broken}")
    try:
        return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own text offers to run whatever is in there
        raise Foreign("it holds more than tensors and plain values") from error
    except RuntimeError as error:
        if "memory" in str(error):  # torch's allocator does not raise MemoryError
            raise MemoryError(str(error)) from error
        if "PytorchStreamReader" in str(error):  # a zip archive by Python's reading, and not by torch's
            raise Damaged(str(error)) from error
        raise


def save(path, content):
    """Writes a dict of plain values and tensors, settings and lineage among them, once Saved is sure to read it again.

    Kind, name, format and versions are added. Raises WorkspaceError, with what was at `path` untouched.
    """
    content = {"kind": kind_of(path.name), "name": path.name, "format": FORMAT, **content, "versions": versions()}
    try:
        packed = to_bytes(path.name, content)
        from_bytes(path.name, packed)
    except MemoryError as error:
        raise unwritten(path, error) from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, pickle.PickleError) as error:
        raise WorkspaceError(f"{path.name} was not written, for nothing could read it again ({reason(error)}). What was "
                             "there before is untouched.") from error
    write_atomic(path, packed)


class Saved:
    """A file that was read and checked.

    path, name and digest (SHA-256) are the file's own. Its entries are attributes too: saved.state, saved.settings, …
    Raises WorkspaceError if it is damaged or not what its name says, and Unreadable if it could not be read. No message asks
    anyone to delete a file: it may be the reader's own, of another project.
    """

    def __init__(self, path):
        self.path, self.name = path, path.name
        try:
            packed = read_whole(path)  # once: another run may replace the file at any moment
            self.digest, self.content = hashlib.sha256(packed).hexdigest(), from_bytes(self.name, packed)
        except ABSENT as error:
            raise WorkspaceError(f"{path} is not there any more. {remedy(self.name)}") from error
        except MemoryError as error:
            raise unreadable(path, error) from error
        except Damaged as error:
            raise WorkspaceError(f"{path} is damaged ({error}). Move it away. {remedy(self.name)}") from error
        except Foreign as error:
            raise WorkspaceError(f"{path} is not a file of this project ({error}). Move it away. {remedy(self.name)}"
                                 ) from error
        if self.format != FORMAT:
            raise WorkspaceError(f"{path} has format {self.format}, and this version reads format {FORMAT}: update the "
                                 f"project, or move the file away. {remedy(self.name)}")
        if self.content["name"] != self.name:
            raise WorkspaceError(f"{path} holds what was saved as {self.content['name']}. Rename it, or move it away. "
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
