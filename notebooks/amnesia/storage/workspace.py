"""Where files live, and what a stage is: its settings, its inputs, whether it is done, how far an unfinished run got."""

import os
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from ..processor import rng_state, set_rng_state
from .disk import DRIVE, Unreadable, WorkspaceError, is_there, make_folder, read_whole, retry, write_atomic
from .files import Saved, remedy, save
from .parameters import check_dataset, check_parameters

REPOSITORY = Path(__file__).resolve().parents[3]
KAGGLE = Path("/kaggle")  # where Kaggle has input/, which nobody may write to, and working/

# Seconds between two saves of progress: a run that is killed loses at most these, and the second between two looks at the
# clock. Drive keeps every version that was replaced in its bin for a month, hence less often there.
SAVE_SECONDS, SAVE_SECONDS_ON_DRIVE = 8, 60


def changes(old, new):
    """What differs between two dicts, in words: ["lam=4 (was 0.4)", …]."""
    return [f"{key}={new.get(key)!r} (was {old.get(key)!r})" for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)]


def home(use_drive):
    """The folder that "auto" means where AMNESIA_WORKSPACE is not set."""
    if REPOSITORY.is_relative_to(KAGGLE / "input"):
        return KAGGLE / "working"
    if use_drive and DRIVE in DRIVE.parent.glob("*") and not REPOSITORY.is_relative_to(DRIVE):    # mounted, or was once
        return DRIVE / "MyDrive" / "selective-amnesia"
    return REPOSITORY


class Workspace:
    """The folder that holds a reader's own files: <folder>/checkpoints, <folder>/figures and <folder>/data.

    folder: a path, or "auto": $AMNESIA_WORKSPACE if set; on Colab, the project's folder if that lies on Drive, else
    My Drive/selective-amnesia if `use_drive` is on; on Kaggle, its working folder; else the repository's root. Files of
    another data set than MNIST lie in a folder of its name inside checkpoints and figures. Raises WorkspaceError if it can't
    be written, or if Drive is not mounted any more.
    """

    def __init__(self, folder="auto", use_drive=True, dataset="MNIST"):
        check_parameters(use_drive=use_drive)
        if folder == "auto":
            folder = os.environ.get("AMNESIA_WORKSPACE") or home(use_drive)
        self.folder, self.dataset = Path(folder).expanduser().absolute(), dataset
        self.data, part = self.folder / "data", "" if dataset == "MNIST" else dataset
        self.checkpoints, self.figures = self.folder / "checkpoints" / part, self.folder / "figures" / part
        self.released = REPOSITORY / "checkpoints" / "released" / part
        try:
            for made in (self.checkpoints, self.figures):
                make_folder(made)
                retry(partial(tempfile.TemporaryFile, dir=made)).close()
        except OSError as error:
            raise WorkspaceError(f"workspace={str(folder)!r} can't be written ({error}). See that its drive is connected "
                                 "and run this cell again, or choose another folder with the parameter `workspace`."
                                 ) from error
        self.save_seconds = SAVE_SECONDS
        if self.folder.is_relative_to(DRIVE):
            self.save_seconds = SAVE_SECONDS_ON_DRIVE
            print(f"Files go to {self.folder}, and progress there every {self.save_seconds} s: Drive keeps old versions.")

    def find(self, name):
        """The path of an input: the workspace's own file, else the released one, else None. Raises ValueError for a path."""
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{name!r}: expected a plain file name, such as 'cvae.pt'.")
        return next((folder / name for folder in (self.checkpoints, self.released) if is_there(folder / name)), None)

    def load(self, name, made_from=()):
        """Reads an input: the workspace's own file, else the released one, as Saved.

        made_from: Saved files that it must have been made from. Raises WorkspaceError if it is missing, damaged, or
        was made from others, and names the notebook to run.
        """
        path = self.find(name)
        if path is None:
            raise WorkspaceError(f"{name} is neither in {self.checkpoints} nor in {self.released}. {remedy(name)}")
        saved = Saved(path)
        for source in made_from:
            if source.name not in saved.lineage:
                raise WorkspaceError(f"{path} was made from {', '.join(saved.lineage)}, not from {source.name}: choose "
                                     f"another `model`. {remedy(name)}")
            if saved.lineage[source.name] != source.digest:
                raise WorkspaceError(f"{path} was not made from this {source.path}, but from another {source.name}. "
                                     f"{remedy(name)}")
        home, note = (self.folder, "") if path.parent == self.checkpoints else (REPOSITORY, "the released file ")
        print(f"Using {note}{path.relative_to(home)}, made from {', '.join(saved.lineage)}")
        return saved

    def save_figure(self, name, content):
        """Writes the bytes of a picture to the folder of figures and returns its path."""
        write_atomic(self.figures / name, content)
        return self.figures / name


class Stage:
    """One stage's output file: is it there already, how far did an unfinished run get, and the saving of it.

    name: the file that the stage makes; settings: the parameters that shape it, as a dict, or as a function that returns
    them as they stand now; inputs: what it is made from (Saved, or anything with a name and a digest).

    A reader of a notebook may change a parameter and run any cell next. So what is recorded is what was set when the stage
    was, and `done` and `load` compare it with what is set now: they raise WorkspaceError, naming the cell to run, rather
    than go on with a mixture. Raises ValueError for bad settings and WorkspaceError for a damaged file.
    """

    def __init__(self, workspace, name, settings, inputs=(), overwrite=False):
        self.current = settings if callable(settings) else lambda: settings
        self.set_up = self.settings = self.current()
        check_parameters(overwrite=overwrite, **self.settings)
        for source in inputs:
            check_dataset(source, self.settings.get("dataset"))
        self.path, self.overwrite, self.save_seconds = workspace.checkpoints / name, overwrite, workspace.save_seconds
        self.unfinished = self.path.with_name(f"{self.path.stem}.unfinished.pt")
        self.lineage = {source.name: source.digest for source in inputs}
        self.saved_at, self.unsaved = time.monotonic(), None
        if is_there(self.path):
            if found := self._changes(Saved(self.path)):
                print(f"{self.path} is another run's, and would be kept beside a new one: {', '.join(found)}")
            elif not overwrite:
                done = self.path.relative_to(workspace.folder)
                print(f"Already done with these settings: {done} (overwrite=True does it again)")

    def done(self, edits=None):
        """Does the workspace hold this stage's file, made with these settings and inputs, and `overwrite` is off?

        edits: settings that are known only now, as what a reader has edited in the model; recorded with the others.
        """
        self._check_unchanged()
        self.settings = {**self.set_up, **(edits or {})}
        if self.unsaved:                                     # trained, and then the disk was full or the drive gone
            self.save(**self.unsaved)
            return True
        return not self.overwrite and is_there(self.path) and not self._changes(Saved(self.path))

    def _check_unchanged(self):
        if found := changes(self.set_up, self.current()):
            raise WorkspaceError(f"{', '.join(found)}: changed since {self.path.name} was set up. Run the cell that begins "
                                 "with “# This stage” again, and then those below it.")

    def _changes(self, saved):
        return changes(saved.settings, self.settings) + changes(saved.lineage, self.lineage)

    def _write(self, path, content):
        save(path, {"settings": self.settings, "lineage": self.lineage, **content})

    def save(self, **content):
        """Saves the finished stage: state, config and metrics for a .pt file, any plain values for a .json.

        A finished file of other settings or inputs is kept, under a name that has the first digits of its digest.
        """
        self.unsaved = content
        if is_there(self.path) and self._changes(old := Saved(self.path)):
            kept = self.path.with_name(f"{self.path.stem}.{old.digest[:8]}{self.path.suffix}")
            write_atomic(kept, read_whole(self.path))
            print(f"{self.path.name} was another run's: kept as {kept}")
        self._write(self.path, content)
        self.unsaved = None
        with suppress(OSError):                              # what is left of it does no harm
            self.unfinished.unlink(missing_ok=True)

    def load(self):
        """The finished stage's file, as Saved. Raises WorkspaceError unless it is there and of these settings and inputs."""
        self._check_unchanged()
        if not is_there(self.path):
            raise WorkspaceError(f"{self.path} is not made yet: run the cell with “if not stage.done” first.")
        saved = Saved(self.path)
        if found := self._changes(saved):
            raise WorkspaceError(f"{self.path} is by now another run's: {', '.join(found)}. Run the cell with “if not "
                                 "stage.done” again to make this one.")
        return saved

    @property
    def due(self):
        """Is it time to save progress again?"""
        return time.monotonic() - self.saved_at > self.save_seconds

    def save_progress(self, parts, done, device):
        """Saves an unfinished run after so many steps, for resume. A save that fails is a warning: the next one may succeed.

        parts: what the run consists of, each by its name: a dict, or anything with state_dict and load_state_dict.
        """
        states = {name: part if isinstance(part, dict) else part.state_dict() for name, part in parts.items()}
        try:
            self._write(self.unfinished, {**states, "done": done, "rng": rng_state(device)})
        except WorkspaceError as error:
            print(f"Progress was not saved, and training goes on: {error}")
        self.saved_at = time.monotonic()

    def resume(self, parts, device):
        """Puts these parts, and the random state of `device`, back to where save_progress last saved this very run.

        Returns how many steps are done: 0 for a fresh start. Raises Unreadable for a file that could not be read (nothing
        says that it is lost), and WorkspaceError if it does not fit, with the file set aside, so that the next try starts
        anew.
        """
        if not is_there(self.unfinished):
            return 0
        try:
            saved = Saved(self.unfinished)
        except Unreadable:
            raise
        except WorkspaceError as error:
            print(f"The unfinished run is lost, starting anew: {error}")
            return 0
        if found := self._changes(saved):
            print(f"{saved.path} is another run's, and will not be continued: {', '.join(found)}")
            return 0
        try:
            for name, part in parts.items():
                state = saved.content[name]
                if isinstance(part, dict):
                    part.update({key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in state.items()})
                else:
                    part.load_state_dict(state)
            set_rng_state(saved.rng, device)
            return saved.done
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            aside = self.path.with_name(f"{self.path.stem}.unusable.pt")
            retry(partial(self.unfinished.replace, aside))
            raise WorkspaceError(f"{self.unfinished} does not fit this version of the project ({error}), and is set aside "
                                 f"as {aside.name}. Run this cell again: it starts anew.") from error
