"""A drive that hiccups: getting bytes to it and from it, whole or not at all.

A network drive, a virus scanner or a full table of open files can refuse for a moment. So whatever a drive refuses is tried
again, and a file that could not be read is never called damaged.
"""

import errno
import os
import secrets
import stat
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

DRIVE = Path("/content/drive")  # where Colab mounts Google Drive
WAITS = (0.1, 0.5, 2, 5)  # seconds before each new try of what a drive refused
ABSENT = (FileNotFoundError, NotADirectoryError)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAY = 24 * 60 * 60


class WorkspaceError(RuntimeError):
    """A file that is missing, damaged, not writable, or made from other files than those it is asked to go with."""


class Unreadable(WorkspaceError):
    """A file that could not be read just now, and may well be whole."""


def reason(error):
    """What an exception or a text says, or the exception's kind if it says nothing, as a MemoryError."""
    return str(error) or type(error).__name__


def retry(action):
    """action(), tried again after each of WAITS seconds while a drive or the memory refuses; then raises what they said."""
    for wait in WAITS:
        try:
            return action()
        except (OSError, MemoryError) as error:
            if isinstance(error, (*ABSENT, IsADirectoryError)) or getattr(error, "errno", None) in FULL:
                raise  # waiting does not help
        time.sleep(wait)
    return action()


def check_drive(path):
    """Raises OSError below a Google Drive that is not mounted any more: a file there would be lost, and prevent mounting."""
    if path.is_relative_to(DRIVE) and not os.path.ismount(DRIVE):
        raise OSError(f"Google Drive is not mounted at {DRIVE}: run the cell “Setup” again, or untick `use_drive`")


def make_folder(folder):
    """Makes a folder, with those above it. Raises OSError."""
    check_drive(folder)
    retry(partial(folder.mkdir, parents=True, exist_ok=True))


def unreadable(path, error):
    """The Unreadable for this file."""
    return Unreadable(f"{path} could not be read ({reason(error)}). As far as is known nothing is wrong with it: keep it, "
                      "see that its drive is connected and that you may read it, then run this cell again.")


def unwritten(path, error):
    """The WorkspaceError for this file."""
    full = getattr(error, "errno", None) in FULL
    remedy = "The disk is full: free some space" if full else "See that its drive is connected and may be written"
    return WorkspaceError(f"{path} could not be written ({reason(error)}). What was there before is untouched, and what was "
                          f"to be saved is still in memory. {remedy}, then run this cell again.")


def is_there(path):
    """Whether there is anything at `path`. Raises Unreadable if the drive does not say, and for a link to what is gone."""
    try:
        check_drive(path)
        retry(path.stat)
        return True
    except ABSENT as error:
        if path.is_symlink():
            raise unreadable(path, "it is a link that leads nowhere") from error
        return False
    except OSError as error:
        raise unreadable(path, error) from error


def read_whole(path):
    """The bytes of a file. Raises FileNotFoundError if there is none, and Unreadable if it could not be read, or is none."""
    try:
        if not stat.S_ISREG(retry(path.stat).st_mode):
            raise unreadable(path, "it is no regular file, but a folder or a pipe")  # reading which might never end
        return retry(path.read_bytes)
    except ABSENT:
        raise
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from error


def write_atomic(path, content):
    """Writes bytes beside `path`, reads them back, and moves them there, so that `path` is whole at every moment.

    What writes that were cut off left there goes after a day. Raises WorkspaceError, with what was at `path` untouched, when
    the disk is full, read-only or gone.
    """
    def write():
        check_drive(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                force_to_disk(file)
            if temporary.read_bytes() != content:
                raise OSError(errno.EIO, "what was written reads otherwise")
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    with suppress(OSError):
        for left in path.parent.glob(".*.tmp"):  # by writes that were cut off; a young one may be another run's, at work
            if time.time() - left.stat().st_mtime > DAY:
                left.unlink()
    try:
        retry(write)
    except (OSError, MemoryError) as error:
        raise unwritten(path, error) from error


def force_to_disk(file):
    """fsync, where the file system knows it: WSL's drives, CIFS and some FUSE drives refuse, and write all the same."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno in (errno.EIO, *FULL):  # no refusal: the bytes did not get there
            raise
