"""The log of many independent runs: a text file of JSON lines, one a run, so that runs that were stopped go on."""

import base64
import contextlib
import io
import json
import platform
import warnings
import zlib

import joblib
import torch

from amnesia import __version__
from amnesia.checkpoints import retry, sha256, there
from amnesia.device import hardware, progress

# joblib replaces a worker that has grown by some hundred MB, as one does that has read its data. Nothing is lost.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs")


class Log:
    """Results of runs in a file of JSON lines: {settings, result, lineage, versions, sha256}.

    path: where it is or will be; lineage: {file name: digest} of what the runs start from. Records of another lineage
    stay in the file and are not seen; without a lineage, all are. A line that was cut off or altered is passed over, and
    its run is done again.
    """

    def __init__(self, path, lineage=None):
        self.path, self.lineage = path, lineage

    def records(self):
        """{settings as JSON: record, with the number of its "line"} of the whole lines of this lineage; the first of equal
        settings counts."""
        found = {}
        for line, text in enumerate(self.path.read_bytes().splitlines() if there(self.path) else [], 1):
            with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):
                record = json.loads(text)
                if record.pop("sha256") == sha256(json.dumps(record)) and self.lineage in (None, record["lineage"]):
                    found.setdefault(key(record["settings"]), record | {"line": line})
        return found

    def append(self, settings, result, **more):
        """Adds one record and has it on disk before it returns. Raises OSError if it could not be written."""
        record = {"settings": settings, "result": result, "lineage": self.lineage, "versions": versions(), **more}
        text = json.dumps({**record, "sha256": sha256(json.dumps(record))}).encode()

        def write():
            cut_off = there(self.path) and not self.path.read_bytes().endswith(b"\n")   # by a kill in the middle of a write
            with open(self.path, "ab") as file:
                file.write(b"\n" * cut_off + text + b"\n")      # one write, at the end: another run's lines stay whole

        retry(write)


def versions():
    """What made a record, for the record."""
    return {"amnesia": __version__, "python": platform.python_version(), "torch": str(torch.__version__),
            "hardware": hardware()}


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
        with contextlib.redirect_stdout(io.StringIO()):
            return settings, run(**settings)
    finally:
        torch.set_num_threads(threads)


def sweep(run, grid, log, n_jobs=-1, **more):
    """Calls run(**settings) for each settings in `grid` that `log` lacks; returns the records of the whole grid, in order.

    run: returns plain values that JSON can hold. n_jobs: processes on this machine, by default one a core. more: what each
    new record says beside its settings. An exception in a run stops the sweep, and so does a process that is killed, as for
    want of memory: what is in the log stays there, and the same call goes on, with fewer processes if memory was short.
    """
    grid, done = {key(settings): settings for settings in grid}, log.records()
    todo = [settings for name, settings in grid.items() if name not in done]
    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    results = parallel(joblib.delayed(quietly)(run, settings) for settings in todo)
    for settings, result in progress(results, total=len(grid), initial=len(grid) - len(todo), desc=log.path.stem, unit="run"):
        log.append(settings, result, **more)
    records = log.records()
    return [records[name] for name in grid]
