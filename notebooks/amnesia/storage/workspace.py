"""Where files live: a reader's own, and the released ones."""

import os
import tempfile
from functools import partial
from pathlib import Path

from .disk import DRIVE, WorkspaceError, is_there, make_folder, retry, write_atomic
from .files import Saved, refused
from .parameters import check_parameters

REPOSITORY = Path(__file__).resolve().parents[3]
KAGGLE = Path("/kaggle")  # where Kaggle has input/, which nobody may write to, and working/

# Seconds between two saves of progress: a run that is killed loses at most these, and the second between two looks at the
# clock. Drive keeps every version that was replaced in its bin for a month, hence less often there.
SAVE_SECONDS, SAVE_SECONDS_ON_DRIVE = 8, 60


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
        part = "" if dataset == "MNIST" else dataset
        self.data, self.checkpoints = self.folder / "data", self.folder / "checkpoints" / part
        self.figures = self.folder / "figures" / part
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
            raise refused(Path(name), f"is neither in {self.checkpoints} nor in {self.released}.")
        saved = Saved(path)
        for source in made_from:
            if saved.lineage.get(source.name) != source.digest:
                other = f"another {source.name}" if source.name in saved.lineage else ", ".join(saved.lineage)
                raise refused(path, f"was not made from this {source.path}, but from {other}: choose another `model`.")
        own = path.parent == self.checkpoints
        shown = path.relative_to(self.folder) if own else f"the released file {path.relative_to(REPOSITORY)}"
        print(f"Using {shown}, made from {', '.join(saved.lineage)}")
        return saved

    def save_figure(self, name, content):
        """Writes the bytes of a picture to the folder of figures and returns its path."""
        write_atomic(self.figures / name, content)
        return self.figures / name
