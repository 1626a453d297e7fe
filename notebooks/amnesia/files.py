"""One file: written whole or not at all, and checked before anything in it is believed.

A checkpoint is a plain dict that torch.load(path, weights_only=True) opens: kind, name, format, state (tensors), config
(rebuilds the object), settings (the parameters that made it), lineage (name and SHA-256 of each file that it was made
from), metrics, versions. An evaluation is the same as JSON.
"""

import hashlib
import io
import json
import os
import platform
import tempfile
import zipfile
from pathlib import Path

import torch

FORMAT = 1
MADE_BY = {"cvae": "01_train_cvae", "fim": "02_compute_fim", "amnesiac": "03_forget", "samples": "04_sample",
           "evaluation": "05_evaluate"}


class WorkspaceError(RuntimeError):
    """A file that is missing, damaged, not writable, or made from other files than those it is asked to go with."""


class Unreadable(WorkspaceError):
    """A file that could not be read this time: nothing says that it is damaged."""


def kind_of(name):
    """What a file holds, by its name: 'fim-cvae.pt' holds a 'fim'."""
    return name.split(".")[0].split("-")[0]


def remedy(name):
    """The sentence that says how to get a good file of this name."""
    notebook = MADE_BY.get(kind_of(name))
    if kind_of(name) == "classifier" and name != "classifier.pt":
        return "A judge that is missing is trained where it is asked for."
    return f"Run {notebook}.ipynb to make it." if notebook else "It belongs to the repository: `git checkout` brings it."


def versions():
    """Versions and hardware, for the record in every file."""
    cpu = f"{os.cpu_count()}-core {platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return {"python": platform.python_version(), "torch": str(torch.__version__), "hardware": hardware}


def write_whole(path, write):
    """Has write(file) fill a binary file beside `path`, then moves it there, so that `path` is whole at every moment.

    Raises WorkspaceError, with what was at `path` untouched, when the disk is full, read-only or gone.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with open(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0o600 would shut out others who share the folder
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise WorkspaceError(f"{path} could not be written ({error}). What was there before is untouched. Free some "
                             "space, or choose another folder with the parameter `workspace`.") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def checksum(content):
    """SHA-256 of plain values, as JSON writes them."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def save_json(content, file):
    """JSON with a checksum of its own: without one, a figure with a flipped digit would still be a figure."""
    file.write(json.dumps({**content, "sha256": checksum(content)}, indent=1).encode())


def read_json(content):
    """The dict that save_json wrote. Raises ValueError if it was altered."""
    content = json.loads(content)
    if content.pop("sha256") != checksum(content):
        raise ValueError("wrong checksum")
    return content


def read_tensors(file):
    """The dict that torch.save wrote, unpickling nothing. Raises ValueError if it was altered."""
    with zipfile.ZipFile(file) as archive:  # torch.load itself does not look at the checksums
        if broken := archive.testzip():
            raise ValueError(f"wrong checksum of {broken}")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


class Saved:
    """A file that was read and checked. Its entries are attributes: saved.state, saved.settings, saved.metrics, …"""

    def __init__(self, path):
        self.path, self.name = path, path.name
        try:
            content = path.read_bytes()  # once: another run may replace the file at any moment
            self.digest = hashlib.sha256(content).hexdigest()
            content = read_json(content) if path.suffix == ".json" else read_tensors(io.BytesIO(content))
            form, name, _, _ = (content[key] for key in ("format", "name", "settings", "lineage"))
        except Exception as error:  # zip, pickle and JSON break in a dozen ways, and all of them mean this
            raise WorkspaceError(f"{path} is damaged, or not a file of this project ({error}). Delete it. "
                                 f"{remedy(self.name)}") from error
        if form != FORMAT:
            raise WorkspaceError(f"{path} has format {form}, and this version reads format {FORMAT}: update the "
                                 f"project, or delete the file. {remedy(self.name)}")
        if name != self.name:
            raise WorkspaceError(f"{path} holds what was saved as {name}. Delete or rename it. {remedy(self.name)}")
        self.__dict__.update(content)

    def build(self, cls, device):
        """The object that was saved: cls(**config) with its state, on `device`, in eval mode."""
        try:
            built = cls(**self.config)
            built.load_state_dict(self.state)
        except (AttributeError, TypeError, RuntimeError) as error:
            raise WorkspaceError(f"{self.path} does not hold a {cls.__name__} ({error}).") from error
        return built.to(device).eval()
