"""What a stage is: its settings, its inputs, whether it is done, how far an unfinished run got."""

import time
from contextlib import suppress
from functools import partial

import torch

from ..processor import rng_state, set_rng_state
from .disk import Unreadable, WorkspaceError, is_there, read_whole, retry, write_atomic
from .files import MISFIT, Saved, save
from .parameters import check_dataset, check_parameters


def changes(old, new):
    """What differs between two dicts, in words: ["lam=4 (was 0.4)", …]."""
    return [f"{key}={new.get(key)!r} (was {old.get(key)!r})" for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)]


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
                print(f"Already done with these settings: {self.path.relative_to(workspace.folder)} "
                      "(overwrite=True does it again)")

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

    def save(self, **content):
        """Saves the finished stage: state, config and metrics for a .pt file, any plain values for a .json.

        A finished file of other settings or inputs is kept, under a name that has the first digits of its digest.
        """
        self.unsaved = content
        if is_there(self.path) and self._changes(old := Saved(self.path)):
            kept = self.path.with_name(f"{self.path.stem}.{old.digest[:8]}{self.path.suffix}")
            write_atomic(kept, read_whole(self.path))
            print(f"{self.path.name} was another run's: kept as {kept}")
        save(self.path, {"settings": self.settings, "lineage": self.lineage, **content})
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
            save(self.unfinished, {"settings": self.settings, "lineage": self.lineage, **states, "done": done,
                                   "rng": rng_state(device)})
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
            why = ", ".join(self._changes(saved))
        except Unreadable:
            raise
        except WorkspaceError as error:
            why = str(error)
        if why:
            print(f"{self.unfinished} is not gone on from, starting anew: {why}")
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
        except MISFIT as error:
            aside = self.path.with_name(f"{self.path.stem}.unusable.pt")
            retry(partial(self.unfinished.replace, aside))
            raise WorkspaceError(f"{self.unfinished} does not fit this version of the project ({error}), and is set aside "
                                 f"as {aside.name}. Run this cell again: it starts anew.") from error
