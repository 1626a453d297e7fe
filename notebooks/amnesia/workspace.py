"""Where files live, and what a stage is: its settings, its inputs, whether it is done, how far an unfinished run got."""

import math
import os
import tempfile
from contextlib import suppress
from functools import partial
from numbers import Integral, Real
from pathlib import Path

from .files import Saved, Unreadable, WorkspaceError, is_there, patiently, remedy, save, write_whole

REPOSITORY = Path(__file__).resolve().parents[2]
DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive


def check_parameters(**parameters):
    """Raises ValueError, naming the parameter, unless counts are positive whole numbers and rates are in range."""
    for name, value in parameters.items():
        real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        whole = real and isinstance(value, Integral)
        count = (whole and value > 0, "a whole number of at least 1")
        weight = (real and value >= 0, "a number of at least 0")
        good, wanted = {
            "steps": count, "batch_size": count, "latent_dim": count, "n_samples": count, "n_per_class": count,
            "lam": weight, "gamma": weight, "weight_decay": weight,
            "learning_rate": (real and value > 0, "a number above 0"),
            "drawn": (real and 0 <= value <= 1, "a number from 0 to 1"),
            "dropout": (real and 0 <= value < 1, "a number from 0 to below 1"),
            "seed": (whole and 0 <= value < 2**63, "a whole number of at least 0"),
        }.get(name, (True, ""))
        if not good:
            raise ValueError(f"{name}={value!r}: expected {wanted}.")


def check_dataset(source, dataset):
    """Raises ValueError if `source`, a Saved or anything with a name, was made with another data set."""
    known = getattr(source, "settings", {}).get("dataset")
    if known and known != dataset:
        raise ValueError(f"dataset={dataset!r}, but {source.name} was made with dataset={known!r}: choose that one, or run "
                         "01_train_cvae.ipynb with the other first.")


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
                patiently(partial(made.mkdir, parents=True, exist_ok=True))
                patiently(partial(tempfile.TemporaryFile, dir=made)).close()
        except OSError as error:
            raise WorkspaceError(f"workspace={str(folder)!r} can't be written ({error}). See that its drive is "
                                 "connected and run this cell again, or choose another folder with the parameter "
                                 "`workspace`.") from error

    def find(self, name):
        """The path of an input: the workspace's own file, else the released one, else None. Raises ValueError for a path."""
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{name!r}: expected a plain file name, such as 'cvae.pt'.")
        folders = self.checkpoints, REPOSITORY / "checkpoints" / "released"
        return next((folder / name for folder in folders if is_there(folder / name)), None)

    def load(self, name, made_from=()):
        """Reads an input: the workspace's own file, else the released one, as Saved.

        made_from: Saved files that it must have been made from. Raises WorkspaceError if it is missing, damaged, or
        was made from others, and names the notebook to run.
        """
        released = REPOSITORY / "checkpoints" / "released"
        path = self.find(name)
        if path is None:
            raise WorkspaceError(f"{name} is neither in {self.checkpoints} nor in {released}. {remedy(name)}")
        saved = Saved(path)
        for source in made_from:
            if saved.lineage.get(source.name) != source.digest:
                raise WorkspaceError(f"{path} was not made from this {source.path}, but from another {source.name}. "
                                     f"{remedy(name)}")
        home, note = (self.folder, "") if path.parent == self.checkpoints else (REPOSITORY, "the released file ")
        print(f"Using {note}{path.relative_to(home)}")
        return saved

    def save_figure(self, name, content):
        """Writes the bytes of a picture to <folder>/figures and returns its path."""
        write_whole(self.figures / name, content)
        return self.figures / name


class Stage:
    """One stage's output file: is it there already, how far did an unfinished run get, and the saving of it.

    name: the file that the stage makes; settings: the parameters that shape it; inputs: what it is made from (Saved, or
    anything with a name and a digest). `done` is True if the workspace holds that file made with the same settings and
    inputs, and `overwrite` is off. Raises ValueError for bad settings and WorkspaceError for a damaged file.
    """

    def __init__(self, workspace, name, settings, inputs=(), overwrite=False):
        check_parameters(**settings)
        for source in inputs:
            check_dataset(source, settings.get("dataset"))
        self.path = workspace.checkpoints / name
        self.unfinished = self.path.with_name(f"{self.path.stem}.unfinished.pt")
        self.identity = {"settings": settings, "lineage": {source.name: source.digest for source in inputs}}
        self.done = is_there(self.path) and not overwrite and self._matches(Saved(self.path), "be made again")
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
        save(path, {**self.identity, **content})

    def save(self, **content):
        """Saves the finished stage: state, config and metrics for a .pt file, any plain values for a .json."""
        self._write(self.path, content)
        with suppress(OSError):  # what is left of it does no harm
            self.unfinished.unlink()

    def load(self):
        """The finished stage's file, as Saved."""
        return Saved(self.path)

    def save_progress(self, **content):
        """Saves an unfinished run, for load_progress. If that fails it says so, and the run goes on."""
        try:
            self._write(self.unfinished, content)
        except WorkspaceError as error:
            print(f"The run goes on without this save of its progress, and the next one will try again: {error}")

    def load_progress(self):
        """What save_progress last saved for this very run (Saved), or None."""
        if not is_there(self.unfinished):
            return None
        try:
            saved = Saved(self.unfinished)
        except Unreadable:
            raise  # it may be whole, and starting anew would replace it
        except WorkspaceError as error:
            print(f"The unfinished run is lost, starting anew: {error}")
            return None
        return saved if self._matches(saved, "not be continued") else None
