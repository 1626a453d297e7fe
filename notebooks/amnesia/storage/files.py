"""The files of this project: checked before they are written, and before anything in them is believed.

A checkpoint is a plain dict that torch.load(path, weights_only=True) opens: kind, name, format, state (tensors), config
(rebuilds the object), settings (the parameters that made it), lineage (name and SHA-256 of each file that it was made
from), metrics, versions. An evaluation is the same as JSON.
"""

import hashlib
import pickle
import platform

import numpy
import torch

from ..processor import hardware
from .content import FORMAT, Damaged, Foreign, from_bytes, kind_of, to_bytes
from .disk import ABSENT, WorkspaceError, read_whole, reason, unreadable, unwritten, write_atomic

MADE_BY = {"cvae": "01_train_cvae", "fim": "02_compute_fim", "amnesiac": "03_forget", "samples": "04_sample",
           "evaluation": "05_evaluate", "denoiser": "studies/11_diffusion"}
MISFIT = ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError  # what plain values can raise


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


def refused(path, why):
    """The WorkspaceError for a file that cannot be taken."""
    return WorkspaceError(f"{path} {why} {remedy(path.name)}")


def versions():
    """Versions and hardware, for the record in every file."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__,
            "hardware": hardware()}


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
    except (*MISFIT, pickle.PickleError) as error:
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
            raise refused(path, "is not there any more.") from error
        except MemoryError as error:
            raise unreadable(path, error) from error
        except (Damaged, Foreign) as error:
            verdict = "damaged" if isinstance(error, Damaged) else "not a file of this project"
            raise refused(path, f"is {verdict} ({error}). Move it away.") from error
        if self.format != FORMAT:
            raise refused(path, f"has format {self.format}, and this version reads format {FORMAT}: update the project, or "
                                "move the file away.")
        if self.content["name"] != self.name:
            raise refused(path, f"holds what was saved as {self.content['name']}. Rename it, or move it away.")
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
            raise WorkspaceError(f"{self.path} was edited in 01_train_cvae.ipynb, and only that notebook can rebuild it. "
                                 "Make the same change in notebooks/amnesia/models.py and run it again, or move it away.")
        try:
            built = cls(**self.config)
            built.load_state_dict(self.state)
        except MISFIT as error:
            raise WorkspaceError(f"{self.path} does not hold a {cls.__name__} ({error}).") from error
        return built.to(device).eval()
