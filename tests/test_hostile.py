"""A hostile afternoon: over two hundred seeded accidents. After each, the series either ends with the right answer, to the
byte, or stops with an error that says which file or parameter and what to do; and no good file is lost."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import miniature
import pytest
from miniature import FILES

from amnesia import Workspace, check_surrogate, forget_set, load_digits, pick_device
from amnesia.data import RAW_SIZES
from amnesia.workspace import check_parameters

TRIALS = {"kill": 60, "truncate": 30, "flip a byte": 35, "swap": 30, "disk full": 25, "read-only": 10, "offline": 10,
          "two at once": 20, "bad parameter": 40}
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
        """The damage to one file is harmless, or is refused by name; deleting that file, as told, then helps."""
        before, answer = bytes_of(folder), run(folder)
        if answer == ("ok", self.right[0]):
            return "right at once"
        status, kind, text = answer
        assert status == "error" and kind == "WorkspaceError", answer
        assert damaged.name in text and "Delete it" in text and ".ipynb" in text, answer
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
        assert answer[0] == "error" and answer[1] == "ValueError" and "is damaged" in answer[2] and "Delete it" in answer[2]
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


BAD = [(forget_set, [[]], "forget="), (forget_set, [list(range(10))], "forget="), (forget_set, [[10]], "forget="),
       (forget_set, [[-1]], "forget="), (forget_set, [["0"]], "forget="), (forget_set, [[1.5]], "forget="),
       (forget_set, [True], "forget="), (check_surrogate, [0, [0]], "surrogate="),
       (check_surrogate, ["nose", [0]], "surrogate="),
       (pick_device, ["abacus"], "device="), (load_digits, ["Omniglot", "nowhere"], "dataset=")]
NUMBERS = ("steps", "batch_size", "latent_dim", "n_samples", "n_per_class", "lam", "gamma", "learning_rate",
           "seed", "dropout", "drawn")


def bad_parameter(day, rng, number):
    kind = rng.randrange(3)
    if kind == 0:
        function, arguments, named = rng.choice(BAD)
        with pytest.raises(ValueError, match=named):
            function(*arguments)
    elif kind == 1:
        name = rng.choice(NUMBERS)
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


ACCIDENTS = dict(zip(TRIALS, (kill, truncate, flip, swap, disk_full, read_only, offline, two_at_once, bad_parameter),
                     strict=True))


def test_a_hostile_afternoon(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the fork server, which else preloads nothing
    begin = time.perf_counter()
    kinds = [kind for kind, count in TRIALS.items() for _ in range(count)]
    random.Random(0).shuffle(kinds)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        day = Afternoon(Path(folder))
        tally = Counter(pool.map(lambda job: trial(day, *job), enumerate(kinds)))
    with capsys.disabled():
        print(f"\n{len(kinds)} accidents in {time.perf_counter() - begin:.0f} s")
        for kind in TRIALS:
            print(f"  {kind:14}", ", ".join(f"{count} {end}" for (k, end), count in sorted(tally.items()) if k == kind))
    assert sum(tally.values()) == len(kinds) >= 200 and tally["kill", "resumed, right"] >= 10
    assert time.perf_counter() - begin < 300
