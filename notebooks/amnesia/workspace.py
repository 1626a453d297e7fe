"""Where files live, and how they are found, checked, saved and loaded.

A checkpoint is a plain dict that torch.load(path, weights_only=True) opens: kind, name, format, state (tensors), config
(rebuilds the object), settings (the parameters that made it), lineage (name and SHA-256 of each file that it was made
from), metrics, versions. An evaluation is the same as JSON. Writing is all or nothing; reading trusts nothing.
"""

import hashlib
import json
import math
import os
import platform
import tempfile
import zipfile
from numbers import Integral, Real
from pathlib import Path

import torch

FORMAT = 1
REPOSITORY = Path(__file__).resolve().parents[2]
DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive
MADE_BY = {"cvae": "01_train_cvae", "fim": "02_compute_fim", "amnesiac": "03_forget", "samples": "04_sample",
           "evaluation": "05_evaluate"}


class WorkspaceError(RuntimeError):
    """A file that is missing, damaged, not writable, or made from other files than those it is asked to go with."""


def kind_of(name):
    """What a file holds, by its name: 'fim-cvae.pt' holds a 'fim'."""
    return name.split(".")[0].split("-")[0]


def remedy(name):
    """The sentence that says how to get a good file of this name."""
    notebook = MADE_BY.get(kind_of(name))
    return f"Run {notebook}.ipynb to make it." if notebook else "It belongs to the repository: `git checkout` brings it."


def check_parameters(**parameters):
    """Raises ValueError, naming the parameter, unless counts are positive whole numbers and rates are in range."""
    for name, value in parameters.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if name in ("steps", "batch_size", "latent_dim", "n_samples", "n_per_class") and not (whole and value > 0):
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1.")
        if name == "seed" and not (whole and 0 <= value < 2**63):
            raise ValueError(f"seed={value!r}: expected a whole number of at least 0.")
        if name == "learning_rate" and not (real and value > 0):
            raise ValueError(f"learning_rate={value!r}: expected a number above 0.")
        if name == "dropout" and not (real and 0 <= value < 1):
            raise ValueError(f"dropout={value!r}: expected a number from 0 to below 1.")
        if name in ("lam", "gamma", "weight_decay") and not (real and value >= 0):
            raise ValueError(f"{name}={value!r}: expected a number of at least 0.")


def pick_device(device="auto"):
    """The torch.device for the parameter `device`: "auto" is a GPU if there is one. Raises ValueError if it is absent."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.zeros(1, device=device).device
    except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError, by backend
        raise ValueError(f"device={device!r}: not available here ({error}). Use \"auto\" or \"cpu\".") from error


def versions():
    """Versions and hardware, for the record in every file."""
    cpu = f"{os.cpu_count()}-core {platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return {"python": platform.python_version(), "torch": str(torch.__version__), "hardware": hardware}


def write_whole(path, write):
    """Has write(temporary path) make the file, then moves it to `path`, which is whole at every moment.

    Raises WorkspaceError, with what was at `path` untouched, when the disk is full, read-only or gone.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0o600 would shut out others who share the folder
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise WorkspaceError(f"{path} could not be written ({error}). What was there before is untouched. Free some "
                             "space, or choose another folder with the parameter `workspace`.") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


class Saved:
    """A file that was read and checked. Its entries are attributes: saved.state, saved.settings, saved.metrics, …"""

    def __init__(self, path):
        self.path, self.name = path, path.name
        try:
            self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
            content = json.loads(path.read_text()) if path.suffix == ".json" else self._read_tensors()
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

    def _read_tensors(self):
        with zipfile.ZipFile(self.path) as archive:  # torch.load itself does not look at the checksums
            if broken := archive.testzip():
                raise ValueError(f"wrong checksum of {broken}")
        return torch.load(self.path, map_location="cpu", weights_only=True)

    def build(self, cls, device):
        """The object that was saved: cls(**config) with its state, on `device`, in eval mode."""
        try:
            built = cls(**self.config)
            built.load_state_dict(self.state)
        except (AttributeError, TypeError, RuntimeError) as error:
            raise WorkspaceError(f"{self.path} does not hold a {cls.__name__} ({error}).") from error
        return built.to(device).eval()


class Workspace:
    """The folder that holds a reader's own files: <folder>/checkpoints, <folder>/figures and <folder>/data.

    folder: a path, or "auto": $AMNESIA_WORKSPACE if set; on Colab, selective-amnesia on a mounted Drive unless
    `use_drive` is off; else the repository's root. Raises WorkspaceError if it can't be written.
    """

    def __init__(self, folder="auto", use_drive=True):
        if folder == "auto":
            on_drive = DRIVE / "selective-amnesia" if use_drive and DRIVE.is_dir() else REPOSITORY
            folder = os.environ.get("AMNESIA_WORKSPACE") or on_drive
        self.folder = Path(folder).expanduser().absolute()
        self.checkpoints, self.figures, self.data = (self.folder / n for n in ("checkpoints", "figures", "data"))
        try:
            for made in (self.checkpoints, self.figures):
                made.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=made).close()
        except OSError as error:
            raise WorkspaceError(f"workspace={str(folder)!r} can't be written ({error}). Choose another folder with the "
                                 "parameter `workspace`.") from error

    def load(self, name, made_from=()):
        """Reads an input: the workspace's own file, else the released one, as Saved.

        made_from: Saved files that it must have been made from. Raises WorkspaceError if it is missing, damaged, or
        was made from others, and names the notebook to run.
        """
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{name!r}: expected a plain file name, such as 'cvae.pt'.")
        released = REPOSITORY / "checkpoints" / "released" / name
        path = next((p for p in (self.checkpoints / name, released) if p.exists()), None)
        if path is None:
            raise WorkspaceError(f"{name} is neither in {self.checkpoints} nor in {released.parent}. {remedy(name)}")
        saved = Saved(path)
        for source in made_from:
            if saved.lineage.get(source.name) != source.digest:
                raise WorkspaceError(f"{path} was not made from this {source.path}, but from another {source.name}. "
                                     f"{remedy(name)}")
        home = REPOSITORY if path == released else self.folder
        print(f"Using {'the released file ' if path == released else ''}{path.relative_to(home)}")
        return saved

    def save_figure(self, name, content):
        """Writes the bytes of a picture to <folder>/figures and returns its path."""
        write_whole(self.figures / name, lambda temporary: Path(temporary).write_bytes(content))
        return self.figures / name


class Stage:
    """One stage's output file: is it there already, how far did an unfinished run get, and the saving of it.

    name: the file that the stage makes; settings: the parameters that shape it; inputs: what it is made from (Saved, or
    anything with a name and a digest). `done` is True if the workspace holds that file made with the same settings and
    inputs, and `overwrite` is off. Raises ValueError for bad settings and WorkspaceError for a damaged file.
    """

    def __init__(self, workspace, name, settings, inputs=(), overwrite=False):
        check_parameters(**settings)
        self.path = workspace.checkpoints / name
        self.unfinished = self.path.with_name(f"{self.path.stem}.unfinished.pt")
        self.identity = {"settings": settings, "lineage": {source.name: source.digest for source in inputs}}
        self.done = self.path.exists() and not overwrite and self._matches(Saved(self.path), "be made again")
        if self.done:
            print(f"Already done with these settings: checkpoints/{name} (overwrite=True does it again)")

    def _matches(self, saved, consequence):
        changed = [f"{key}={new.get(key)!r} (was {old.get(key)!r})"
                   for old, new in ((getattr(saved, part), self.identity[part]) for part in ("settings", "lineage"))
                   for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            print(f"{saved.path} will {consequence}: {', '.join(changed)}")
        return not changed

    def _write(self, path, content):
        content = {"kind": kind_of(path.name), "name": path.name, "format": FORMAT, **self.identity, **content,
                   "versions": versions()}
        if path.suffix == ".json":
            write_whole(path, lambda temporary: Path(temporary).write_text(json.dumps(content, indent=1)))
        else:
            write_whole(path, lambda temporary: torch.save(content, temporary))

    def save(self, **content):
        """Saves the finished stage: state, config and metrics for a .pt file, any plain values for a .json."""
        self._write(self.path, content)
        self.unfinished.unlink(missing_ok=True)

    def load(self):
        """The finished stage's file, as Saved."""
        return Saved(self.path)

    def save_progress(self, **content):
        """Saves an unfinished run, for load_progress."""
        self._write(self.unfinished, content)

    def load_progress(self):
        """What save_progress last saved for this very run (Saved), or None."""
        if not self.unfinished.exists():
            return None
        try:
            saved = Saved(self.unfinished)
        except WorkspaceError as error:
            print(f"The unfinished run is lost, starting anew: {error}")
            return None
        return saved if self._matches(saved, "not be continued") else None
