"""A hostile afternoon: over three hundred seeded accidents. After each, the series either ends with the right answer, to the
byte, or stops with an error that says which file or parameter and what to do; and no good file is lost."""

import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from amnesia import Workspace, load_digits, pick_device
from amnesia.storage.idx import RAW_SIZES
from amnesia.storage.parameters import RANGES, check_parameters, check_surrogate, forget_set

miniature = pytest.importorskip("miniature")  # it needs locks and limits that Windows has not
FILES = miniature.FILES
TRIALS = {"kill": 45, "truncate": 20, "flip a byte": 30, "swap": 25, "disk full": 20, "read-only": 10, "offline": 10,
          "two at once": 12, "bad parameter": 40, "unreadable": 25, "refused for a moment": 15, "refused for good": 15,
          "progress not saved": 10, "no fsync, no locks": 5, "too many open files": 10, "unreadable data": 5,
          "silent proxy": 5, "random errors": 30}
REFUSALS = ("EIO", "ENOTCONN", "ESTALE", "ETIMEDOUT", "EACCES", "EMFILE", "memory")
context = multiprocessing.get_context("forkserver")  # a fresh process in milliseconds, torch already imported
context.set_forkserver_preload(["pytest", "miniature"])


def start(folder, **faults):
    """A process that runs the series in `folder`, and the pipe that its answer will come through."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=miniature.attempt, args=(theirs, str(folder)), kwargs=faults)
    process.start()
    theirs.close()
    return process, ours


def finish(process, pipe):
    """The answer of a process: ("ok", …), ("error", kind, text), or ("killed",)."""
    try:
        answer = pipe.recv()
    except EOFError:
        answer = ("killed",)
    process.join()
    return answer


def run(folder, **faults):
    return finish(*start(folder, **faults))


def bytes_of(folder):
    return {name: (folder / "checkpoints" / name).read_bytes() for name in FILES if (folder / "checkpoints" / name).exists()}


class Afternoon:
    """Two finished workspaces to start from, the right answer for each, and how long it takes to get there."""

    def __init__(self, folder):
        self.folder, self.finished, self.right = folder, {}, {}
        folder.chmod(0o755)
        for seed in (0, 1):
            self.finished[seed] = folder / f"finished-{seed}"
            begin = time.perf_counter()
            status, self.right[seed] = run(self.finished[seed], seed=seed)
            self.seconds = time.perf_counter() - begin  # of the second: the first also started the fork server
            assert status == "ok", self.right[seed]

    def fresh(self, number):
        return self.folder / f"trial-{number}"

    def copy(self, number, seed=0):
        return Path(shutil.copytree(self.finished[seed], self.fresh(number)))

    def ends_right(self, folder):
        """Runs the series to its end and compares every file with the right answer."""
        answer = run(folder)
        assert answer == ("ok", self.right[0]), answer

    def refuses_then_ends_right(self, folder, damaged):
        """The damage to one file is harmless, or is refused by name; moving that file away, as told, then helps."""
        before, answer = bytes_of(folder), run(folder)
        if answer == ("ok", self.right[0]):
            return "right at once"
        if answer[0] == "ok":  # a bit of the zip's padding: other bytes, and the content as it was
            now, was = (torch.load(path / "checkpoints" / damaged.name, weights_only=True) for path in
                        (folder, self.finished[0]))
            assert now["state"].keys() == was["state"].keys() and now["settings"] == was["settings"]
            assert all(torch.equal(value, was["state"][key]) for key, value in now["state"].items())
            return "harmless"
        status, kind, text = answer
        assert status == "error" and kind == "WorkspaceError", answer
        assert damaged.name in text and "Move it away" in text and ".ipynb" in text, answer
        assert bytes_of(folder) == before  # nothing was touched, the damaged file included
        damaged.unlink()
        self.ends_right(folder)
        return "refused, then right"


def kill(day, rng, number):
    folder = day.fresh(number)
    process, pipe = start(folder)
    time.sleep(rng.uniform(0, 1.1 * day.seconds))
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    killed = finish(process, pipe) == ("killed",)
    before = bytes_of(folder) if folder.exists() else {}
    unfinished = killed and any(folder.glob("checkpoints/*.unfinished.pt"))
    day.ends_right(folder)
    assert before.items() <= bytes_of(folder).items()  # what was finished before the kill is what is there now
    return "resumed, right" if unfinished else "killed between saves, right" if killed else "was faster"


def truncate(day, rng, number):
    path = day.copy(number) / "checkpoints" / rng.choice(FILES)
    path.write_bytes(path.read_bytes()[:rng.randrange(path.stat().st_size)])
    return day.refuses_then_ends_right(path.parents[1], path)


def flip(day, rng, number):
    path = day.copy(number) / "checkpoints" / rng.choice(FILES)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return day.refuses_then_ends_right(path.parents[1], path)


def swap(day, rng, number):
    """A file of another workspace: a stage alone refuses it as input; the whole series makes it again."""
    folder, name = day.copy(number), rng.choice(FILES)
    shutil.copy(day.finished[1] / "checkpoints" / name, folder / "checkpoints" / name)
    alone = rng.choice(FILES[1:])
    before, answer = bytes_of(folder), run(folder, only=[alone], overwrite=True)
    if name in FILES[:FILES.index(alone)]:  # it is an input, and whatever was made from the right one is refused
        later = [file for file in FILES[1:FILES.index(alone)] if FILES.index(file) >= FILES.index(name)]
        if later:
            assert answer[0] == "error" and answer[1] == "WorkspaceError" and "was not made from this" in answer[2], answer
            assert answer[2].count(".pt") >= 2 and ".ipynb" in answer[2] and bytes_of(folder) == before
        else:  # the other CVAE by itself is a good one
            assert answer[0] == "ok"
    else:
        assert answer == ("ok", {alone: day.right[0][alone]}), answer
    day.ends_right(folder)
    return "refused, then right" if answer[0] == "error" else "made again, right"


def disk_full(day, rng, number):
    folder = day.fresh(number)
    if done := rng.randrange(len(FILES)):
        assert run(folder, only=FILES[:done])[0] == "ok"
    largest = max(map(len, bytes_of(day.finished[0]).values()))
    before, answer = bytes_of(folder), run(folder, disk=rng.randrange(2 * largest))
    if answer[0] == "error":
        assert answer[1] == "WorkspaceError" and "untouched" in answer[2] and str(folder) in answer[2], answer
    else:
        assert answer == ("ok", day.right[0]), answer
    assert before.items() <= bytes_of(folder).items() and not list(folder.glob("checkpoints/.*.tmp"))
    day.ends_right(folder)
    return "said so, then right" if answer[0] == "error" else "fitted, right"


def read_only(day, rng, number):
    folder = day.copy(number)
    shut = rng.choice([folder / "checkpoints", folder / "figures"])
    before = bytes_of(folder)
    shut.chmod(0o555)
    answer = run(folder, unprivileged=True)
    shut.chmod(0o755)
    assert answer[0] == "error" and answer[1] == "WorkspaceError" and "workspace=" in answer[2], answer
    assert bytes_of(folder) == before
    day.ends_right(folder)
    return "said so, then right"


def offline(day, rng, number):
    """No network: nothing at all on disk, or some of the four files, or four of which one is not MNIST."""
    raw = day.fresh(number) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    present = rng.sample(sorted(RAW_SIZES), rng.randrange(5))
    for file in present:
        (raw / file).write_bytes(rng.randbytes(100))
    answer = run(day.fresh(number), offline=str(day.fresh(number)))
    assert {path.name for path in raw.iterdir()} >= set(present)
    if len(present) == len(RAW_SIZES):
        assert answer[0] == "error" and answer[1] == "ValueError" and "own file" in answer[2] and "Move" in answer[2]
        return "refused the data"
    assert answer == ("ok", [4000, 1000]), answer
    return "5,000 digits instead"


def two_at_once(day, rng, number):
    folder = day.fresh(number)
    first = start(folder)
    time.sleep(rng.uniform(0, day.seconds / 2))
    second = start(folder)
    assert finish(*first) == finish(*second) == ("ok", day.right[0])
    day.ends_right(folder)
    return "both right"


def keeps_and_ends_right(day, folder, before, answer, *said):
    """It stopped with a sentence that tells nobody to delete anything, and touched nothing; run again, it ends right."""
    status, kind, text = answer
    assert status == "error" and kind in ("WorkspaceError", "Unreadable") and all(part in text for part in said), answer
    assert "ove it away" not in text and "damaged" not in text and "again" in text, answer
    assert before.items() <= bytes_of(folder).items() and not list(folder.glob("checkpoints/.*.tmp"))
    day.ends_right(folder)
    return "said so, then right"


def unreadable(day, rng, number):
    """A file that the drive does not give, a moment long or for good: the finished, or the unfinished of an earlier run."""
    folder, error, name = day.copy(number), rng.choice(REFUSALS), rng.choice(FILES)
    if rng.random() < 0.5:
        name = rng.choice(["cvae.unfinished.pt", "amnesiac-0.unfinished.pt"])
        done = FILES.index(name.replace(".unfinished", ""))
        shutil.rmtree(folder)
        assert run(folder, refusals=[("move", error, None, f"/{FILES[done]}")])[0] == "error"
    before, unfinished = bytes_of(folder), [*folder.glob("checkpoints/*.unfinished.pt")]
    if rng.random() < 0.4:
        assert run(folder, refusals=[("read", error, rng.randrange(1, 5), name)]) == ("ok", day.right[0])
        return "tried again, right"
    if rng.random() < 0.3 and not unfinished:
        (folder / "checkpoints" / name).chmod(0)  # for real, and not as root
        for shared in (folder / "checkpoints", folder / "figures"):
            shared.chmod(0o777)
        answer = run(folder, unprivileged=True)
        (folder / "checkpoints" / name).chmod(0o644)
    else:
        answer = run(folder, refusals=[("read", error, None, name)])
    assert all(path.exists() for path in unfinished)
    return keeps_and_ends_right(day, folder, before, answer, name, "could not be read", "nothing is wrong")


def refused_for_a_moment(day, rng, number):
    """As a virus scanner that holds a file."""
    refusals = [(rng.choice(["move", "read", "fsync"]), rng.choice(REFUSALS), rng.randrange(1, 5), rng.choice([*FILES, ""]))]
    assert run(day.fresh(number), refusals=refusals) == ("ok", day.right[0])
    day.ends_right(day.fresh(number))
    return "right at once"


def refused_for_good(day, rng, number):
    folder, name = day.fresh(number), rng.choice(FILES)
    done = FILES[:FILES.index(name)]
    before = bytes_of(folder) if run(folder, only=done)[0] == "ok" else None
    answer = run(folder, refusals=[("move", rng.choice(REFUSALS), None, f"/{name}")])
    return keeps_and_ends_right(day, folder, before, answer, name, "could not be written", "untouched", "still in memory")


def progress_not_saved(day, rng, number):
    folder, some = day.fresh(number), rng.choice([None, rng.randrange(1, 150)])
    assert run(folder, refusals=[("move", rng.choice(REFUSALS), some, ".unfinished.")]) == ("ok", day.right[0])
    day.ends_right(folder)
    return "right at once"


def no_fsync_no_locks(day, rng, number):
    """As on WSL's drives, CIFS, OneDrive and some FUSE drives."""
    error = rng.choice(["EINVAL", "ENOTSUP", "EPERM", "ENOSYS"])
    assert run(day.fresh(number), refusals=[(what, error) for what in ("fsync", "chmod", "flock")]) == ("ok", day.right[0])
    return "right at once"


def too_many_open_files(day, rng, number):
    folder = day.copy(number) if rng.random() < 0.5 else day.fresh(number)
    before, more = bytes_of(folder), rng.randrange(3)
    answer = run(folder, open_files=more)
    if more:
        assert answer == ("ok", day.right[0]), answer
        return "one at a time, right"
    return keeps_and_ends_right(day, folder, before, answer, "Too many open files")


def unreadable_data(day, rng, number):
    raw = day.fresh(number) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in RAW_SIZES:
        (raw / file).write_bytes(b"sixty thousand digits")
    file, error = rng.choice(list(RAW_SIZES)), rng.choice(REFUSALS)
    answer = run(day.fresh(number), offline=str(day.fresh(number)), refusals=[("read", error, None, file)])
    assert answer[:2] == ("error", "Unreadable") and file in answer[2] and "ove it away" not in answer[2], answer
    assert {path.name for path in raw.iterdir()} == set(RAW_SIZES)
    return "said so"


def silent_proxy(day, rng, number):
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes every call and never answers
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert run(day.fresh(number), offline=str(day.fresh(number)), proxy=proxy) == ("ok", [4000, 1000])
    return "5,000 digits instead"


def random_errors(day, rng, number):
    """Every call to the drive may fail, by the fault injector libfiu, with any of its POSIX errors."""
    folder = day.copy(number) if rng.random() < 0.3 else day.fresh(number)
    before, probability = bytes_of(folder), 10 ** rng.uniform(-2.5, -0.5)
    answer = run(folder, errors=(probability, number), overwrite=rng.random() < 0.3)
    if answer[0] == "ok":
        assert answer == ("ok", day.right[0]), answer
    else:
        assert answer[1] in ("WorkspaceError", "Unreadable"), answer
        assert "ove it away" not in answer[2] and "damaged" not in answer[2], answer
        assert str(folder) in answer[2] and before.items() <= bytes_of(folder).items(), answer
    day.ends_right(folder)
    return "right at once" if answer[0] == "ok" else "said so, then right"


BAD = [(forget_set, [[]], "forget="), (forget_set, [list(range(10))], "forget="), (forget_set, [[10]], "forget="),
       (forget_set, [[-1]], "forget="), (forget_set, [["0"]], "forget="), (forget_set, [[1.5]], "forget="),
       (forget_set, [True], "forget="), (check_surrogate, [0, [0]], "surrogate="),
       (check_surrogate, ["nose", [0]], "surrogate="),
       (pick_device, ["abacus"], "device="), (load_digits, ["Omniglot", "nowhere"], "dataset=")]


def bad_parameter(day, rng, number):
    kind = rng.randrange(3)
    if kind == 0:
        function, arguments, named = rng.choice(BAD)
        with pytest.raises(ValueError, match=named):
            function(*arguments)
    elif kind == 1:
        name = rng.choice(list(RANGES))
        with pytest.raises(ValueError, match=f"{name}="):
            check_parameters(**{name: rng.choice([-1, float("nan"), float("inf"), "many", None, True])})
    else:
        store = Workspace(day.fresh(number))
        name = rng.choice(["../cvae.pt", "/etc/passwd", "a/b.pt", "", "..", ".hidden"])
        with pytest.raises(ValueError, match="plain file name"):
            store.load(name)
    return "named the parameter"


def trial(day, number, kind):
    return kind, ACCIDENTS[kind](day, random.Random(number), number)


ACCIDENTS = dict(zip(TRIALS, (kill, truncate, flip, swap, disk_full, read_only, offline, two_at_once, bad_parameter,
                              unreadable, refused_for_a_moment, refused_for_good, progress_not_saved, no_fsync_no_locks,
                              too_many_open_files, unreadable_data, silent_proxy, random_errors), strict=True))


@pytest.mark.slow
def test_a_hostile_afternoon(record_property, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the fork server, which else preloads nothing
    begin, trials = time.perf_counter(), dict(TRIALS)
    if shutil.which("fiu-run"):  # the processes start with the library that it would preload, which errs on demand only
        printenv = subprocess.run(["fiu-run", "-x", "-f", "", "printenv", "LD_PRELOAD"], capture_output=True, text=True)
        # before it, for else torch does not load: glibc's plain malloc, lest libfiu's calls itself for lack of memory
        monkeypatch.setenv("LD_PRELOAD", f"libc_malloc_debug.so.0 {printenv.stdout.strip()}")
    else:
        del trials["random errors"]
    kinds = [kind for kind, count in trials.items() for _ in range(count)]
    random.Random(0).shuffle(kinds)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        day = Afternoon(Path(folder))
        tally = Counter(pool.map(lambda job: trial(day, *job), enumerate(kinds)))
    lines = []
    for kind in TRIALS:
        ends = ", ".join(f"{count} {end}" for (k, end), count in sorted(tally.items()) if k == kind)
        lines.append(f"{kind:20} {ends or 'not tried: fiu-run (Debian’s fiu-utils) is not installed'}")
    record_property(f"{len(kinds)} accidents in {time.perf_counter() - begin:.0f} s", "\n".join(lines))
    assert sum(tally.values()) == len(kinds) >= 300 and tally["kill", "resumed, right"] >= 10
    assert "random errors" not in trials or tally["random errors", "said so, then right"] >= 5
    assert time.perf_counter() - begin < 600
