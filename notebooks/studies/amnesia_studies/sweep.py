"""Many independent runs of one function: through joblib, on this machine or on a Dask cluster, each result kept at once.

The log is a text file of JSON lines, one a run, so that a sweep that was stopped goes on where it was.
"""

import base64
import contextlib
import errno
import json
import os
import warnings
import zlib

import joblib
import torch

from amnesia.storage.content import checksum
from amnesia.storage.disk import force_to_disk, is_there, read_whole, retry, unwritten
from amnesia.storage.files import versions
from amnesia.training import progress


class Log:
    """Results of runs in a file of JSON lines: {settings, result, lineage, versions, sha256}.

    path: where it is or will be; lineage: {file name: digest} of what the runs start from. Records of another lineage
    stay in the file and are not seen; without a lineage, all are. A line that was cut off or altered is passed over, and
    its run is done again.
    """

    def __init__(self, path, lineage=None):
        self.path, self.lineage = path, lineage

    def records(self):
        """{settings as JSON: record} of the whole lines of this lineage; the first of equal settings counts."""
        found = {}
        for line in read_whole(self.path).splitlines() if is_there(self.path) else []:
            try:
                record = json.loads(line)
                whole = record.pop("sha256") == checksum(record)
                settings, lineage = key(record["settings"]), record["lineage"]
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                continue
            if whole and self.lineage in (None, lineage):
                found.setdefault(settings, record)
        return found

    def append(self, settings, result):
        """Adds one record and has it on disk before it returns. Raises WorkspaceError if it could not be written."""
        record = {"settings": settings, "result": result, "lineage": self.lineage, "versions": versions()}
        line = json.dumps({**record, "sha256": checksum(record)}).encode()

        def write():
            with open(self.path, "ab+", buffering=0) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                cut_off = file.read(1) not in (b"", b"\n")      # by a kill in the middle of a write
                whole = (b"\n" if cut_off else b"") + line + b"\n"
                if file.write(whole) < len(whole):              # one write, at the end: another run's lines stay whole
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                force_to_disk(file)

        try:
            retry(write)
        except (OSError, MemoryError) as error:
            raise unwritten(self.path, error) from error


def images_to_text(images):
    """A tensor of bytes (n, 784) as text that JSON can hold, some hundred characters an image."""
    return base64.b64encode(zlib.compress(images.cpu().numpy().tobytes())).decode()


def images_from_text(text):
    """The images (n, 28, 28) of images_to_text()."""
    return torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=torch.uint8).view(-1, 28, 28)


def key(settings):
    """The same text for the same settings."""
    return json.dumps(settings, sort_keys=True)


def quietly(run, settings):
    """run(**settings) on one thread, so that a result does not depend on how many run beside it, and with no output."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
            return settings, run(**settings)
    finally:
        torch.set_num_threads(threads)


def sweep(run, grid, log, n_jobs=-1, cluster=None, title="sweep"):
    """Calls run(**settings) for each settings in `grid` that `log` lacks; returns the records of the whole grid, in order.

    run: returns plain values that JSON can hold. n_jobs: local processes, by default one a core. cluster: the address of a
    Dask scheduler, as "tcp://10.0.0.1:8786", whose workers do the runs instead; they need the project's folders
    `notebooks` and `notebooks/studies` on their PYTHONPATH, and the same workspace. A worker that dies has its run done
    again by another. An exception in a run stops the sweep; what is in the log stays there.
    """
    if not isinstance(n_jobs, int) or n_jobs == 0:
        raise ValueError(f"n_jobs={n_jobs!r}: expected a number of processes, or -1 for one a core.")
    grid = list({key(settings): settings for settings in grid}.values())
    todo = [settings for settings in grid if key(settings) not in log.records()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # joblib replaces a worker that has grown by some hundred MB, as one does that has read its data. Nothing is lost.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
        if cluster:
            from distributed import Client  # only for those who have a cluster

            client = stack.enter_context(Client(cluster))
            stack.enter_context(joblib.parallel_config(backend="dask", client=client))
        parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
        results = parallel(joblib.delayed(quietly)(run, settings) for settings in todo)
        for settings, result in progress(results, total=len(grid), initial=len(grid) - len(todo), desc=title, unit="run"):
            log.append(settings, result)
    records = log.records()
    return [records[key(settings)] for settings in grid]
