"""Files: whole or not there, checked before they are believed, each with what it was made from; and where they live.

A checkpoint is a plain dict that torch.load(path, weights_only=True) opens: kind, name, state (tensors), config (rebuilds
the object), settings (the parameters that made it), lineage (name and SHA-256 of each file that it was made from), code
(SHA-256 of a notebook's own functions that made it), metrics, pictures (shape, classes and SHA-256 of those that a notebook's
model was trained on), versions. An evaluation is the same as JSON.
"""

import hashlib
import io
import json
import os
import re
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from .device import hardware

ROOT = Path(__file__).resolve().parents[2]                  # of a clone: the folder that holds notebooks/
CLONE = (ROOT / "checkpoints" / "released").is_dir()        # else pip has installed the package, and the files elsewhere
RELEASED = ROOT / "checkpoints" / "released" if CLONE else Path(sys.prefix, "share", "selective-amnesia", "released")
HOME = ROOT if CLONE else Path.cwd()
SOURCE = re.compile(r"model-\w+\.py").fullmatch             # what the source of a reader's model is called
DRIVE = Path("/content/drive")                              # where Colab mounts Google Drive
# By how a file's name begins. A judge is made wherever it is missing, and a denoiser by no notebook.
MADE_BY = {"cvae": "01_train_cvae", "model-": "01_train_cvae", "fim-cvae": "02_compute_fim", "fim-amnesiac": "02_compute_fim",
           "amnesiac": "03_forget", "samples": "04_sample", "evaluation": "05_evaluate"}


class WorkspaceError(RuntimeError):
    """A file that is missing, damaged, not readable or writable, or made from other files than those it goes with."""


def sha256(content):
    """SHA-256 of bytes, or of a text."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def refused(path, why):
    """The WorkspaceError for a file that cannot be taken: why, and which notebook makes a good one."""
    makers = [f" Run {notebook}.ipynb to make it." for begins, notebook in MADE_BY.items() if path.name.startswith(begins)]
    return WorkspaceError(f"{path} {why}{''.join(makers)}")


def retry(action, *arguments):
    """action(*arguments), and once more after a second if a drive refuses it; then raises what it said."""
    with suppress(OSError):
        return action(*arguments)
    time.sleep(1)
    return action(*arguments)


def there(path):
    """Whether there is a file at `path`. Raises WorkspaceError below a Google Drive that is not mounted: it cannot say, and
    what is made there would be lost."""
    if path.is_relative_to(DRIVE) and not os.path.ismount(DRIVE):
        raise WorkspaceError(f"{path}: Google Drive is not mounted. Run “Set-up” and “This stage” again, or untick `use_drive`.")
    return path.is_file()


def write(path, content):
    """Writes bytes beside `path` and moves them there, so that what is at `path` is whole at every moment; makes its folder.

    Raises WorkspaceError, with what was there untouched, when the disk is full, read-only or gone.
    """
    there(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        retry(temporary.write_bytes, content)
        retry(os.replace, temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise WorkspaceError(f"{path} could not be written ({error}). What was there is whole: run this cell again.") from error


def pack(name, content):
    """The bytes of a file of this name: torch.save's, or JSON with a checksum, so that no altered number passes."""
    versions = {"python": sys.version.split()[0], "torch": str(torch.__version__), "hardware": hardware()}
    content = {"kind": re.split(r"[-.]", name)[0], "name": name, **content, "versions": versions}
    if name.endswith(".json"):
        return json.dumps({**content, "sha256": sha256(json.dumps(content))}, indent=1).encode()
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def unpack(name, packed):
    """The dict in these bytes. Raises ValueError, or whatever else, for what is cut off, altered, or not of this project."""
    if name.endswith(".json"):
        content = json.loads(packed)
        intact = content.pop("sha256") == sha256(json.dumps(content))
    else:
        intact = zipfile.ZipFile(io.BytesIO(packed)).testzip() is None          # torch.load does not look at its checksums
        content = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    if not intact or not {"name", "settings", "lineage"} <= {*content} or content["name"] != name:
        raise ValueError("wrong checksum, or saved under another name")
    return content


class Saved:
    """A file that was read and checked: its path, name, digest (SHA-256), and its entries as attributes: saved.state, ...

    packed: its bytes, if known. Raises WorkspaceError for what is damaged or not what its name says, OSError for what a drive
    refuses twice.
    """

    def __init__(self, path, packed=None):
        there(path)
        packed = packed or retry(path.read_bytes)           # once: another run may replace the file at any moment
        try:
            entries = unpack(path.name, packed)
        except Exception as error:                          # of any kind; and torch's own words advise to load it all the same
            raise refused(path, f"is damaged, or no file of this project ({type(error).__name__}). Move it away.") from error
        vars(self).update(entries)                          # before what follows, so that no entry passes for it
        self.path, self.name, self.digest = path, path.name, sha256(packed)

    def build(self, cls, device):
        """The object that was saved: cls(**config) with its state, on `device`, in eval mode.

        A model that was defined in notebook 01 is of the class of that name in the source beside the file: the reader's own
        code, which is run. Raises WorkspaceError for another source than that it was made from, and for what is no such object.
        """
        for path in map(self.path.with_name, filter(SOURCE, self.lineage)):
            source, namespace = path.read_bytes() if there(path) else b"", {"__name__": "model"}
            if sha256(source) != self.lineage[path.name]:
                raise refused(path, f"defines the model of {self.path}, and is not there any more, or another.")
            exec(compile(source, str(path), "exec"), namespace)
            cls = namespace[cls.__name__]
        try:
            built = cls(**self.config)
            built.load_state_dict(self.state)
        except Exception as error:                          # whatever a reader's own class raises
            raise refused(self.path, f"holds no {cls.__name__} that can be rebuilt ({error}).") from error
        return built.to(device).eval()


class Workspace:
    """The folder that holds a reader's own files: <folder>/checkpoints, <folder>/figures and <folder>/data.

    folder: a path, a relative one below the project's folder (one place for all notebooks); or "auto": $AMNESIA_WORKSPACE
    if set; on Colab My Drive/selective-amnesia if Drive is mounted; on Kaggle its working folder; else the project's. Files
    of another `dataset` than MNIST, as in load_pictures, lie in a folder of its name. Raises WorkspaceError if it can't be
    written.
    """

    def __init__(self, folder="auto", use_drive=True, dataset="MNIST"):
        usual = "/kaggle/working" if HOME.is_relative_to("/kaggle/input") else HOME
        if use_drive and os.path.ismount(DRIVE):
            usual = DRIVE / "MyDrive" / "selective-amnesia"
        elif use_drive and "google.colab" in sys.modules:
            print("Google Drive is not mounted: files on this machine do not survive a disconnect.")
        folder = (os.environ.get("AMNESIA_WORKSPACE") or usual) if folder in ("auto", "", None) else folder
        self.folder, self.source, self.dataset = HOME / Path(str(folder)).expanduser(), dataset, Path(dataset).stem
        part = "" if self.dataset == "MNIST" else self.dataset
        self.data, self.released = self.folder / "data", RELEASED / part
        self.checkpoints, self.figures = self.folder / "checkpoints" / part, self.folder / "figures" / part
        # Seconds between two saves of progress. Drive keeps every version that was replaced in its bin for a month.
        self.save_seconds = 60 if self.folder.is_relative_to(DRIVE) else 8
        write(self.checkpoints / ".writable", b"")          # to be told now, and not after an hour of training

    def find(self, name):
        """The path of an input: the workspace's own file, else the released one, else None."""
        return next((folder / name for folder in (self.checkpoints, self.released) if there(folder / name)), None)

    def load(self, name, made_from=()):
        """Reads an input: the workspace's own file, else the released one, as Saved.

        made_from: Saved files that it must have been made from. Raises WorkspaceError if it is missing, damaged, or
        was made from others, and names the notebook to run.
        """
        if not (path := self.find(name)):
            raise refused(Path(name), f"is neither in {self.checkpoints} nor in {self.released}.")
        saved = Saved(path)
        for source in made_from:
            if saved.lineage.get(source.name) != source.digest:
                raise refused(path, f"was not made from this {source.path}, but from another, or {', '.join(saved.lineage)}.")
        print(f"Using {'the released file ' * (path.parent != self.checkpoints)}{path}, made from {', '.join(saved.lineage)}")
        return saved

    def save_figure(self, name, content):
        """Writes the bytes of a picture to the folder of figures."""
        write(self.figures / name, content)
