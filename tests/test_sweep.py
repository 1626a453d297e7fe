"""Sweeps: every result once, whatever stops in between."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from amnesia.storage import disk
from amnesia.storage.content import checksum
from amnesia.storage.disk import WorkspaceError
from amnesia_studies import sweep as sweep_module
from amnesia_studies.sweep import Log, sweep

FOLDERS = ("notebooks", "notebooks/studies", "tests")  # what a process of its own must find
LINEAGE = {"cvae.pt": "abc"}
GRID = [{"x": x} for x in range(8)]


def square(x, folder=None, pause=0.0):
    """Leaves a file for each call, with its process's number, so that calls can be counted across processes."""
    if folder:
        (folder / f"{x}-{time.monotonic_ns()}-{os.getpid()}").touch()
    time.sleep(pause)
    if x == 99:
        raise ArithmeticError("x is 99")
    return {"square": x * x}


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "studies.jsonl", LINEAGE)


PROLOGUE = f"""
import sys
sys.path[:0] = {[str(REPOSITORY / folder) for folder in FOLDERS]}
from pathlib import Path
from amnesia_studies.sweep import Log, sweep
from test_sweep import LINEAGE, slowly
"""


def squares(records):
    return [record["result"]["square"] for record in records]


def count(x, folder):
    return square(x, Path(folder))


def slowly(x, folder):
    return square(x, Path(folder), pause=0.5)


@pytest.mark.slow
def test_results_come_in_the_order_of_the_grid_and_only_new_ones_are_run(log, tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()
    grid = [{"x": x, "folder": str(calls)} for x in (3, 1, 2)]
    assert squares(sweep(count, grid[:2], log, n_jobs=2)) == [9, 1]
    assert squares(sweep(count, [*grid, grid[0]], log, n_jobs=2)) == [9, 1, 4]
    assert len(list(calls.iterdir())) == 3


def test_a_failure_stops_the_sweep_and_keeps_what_came_before(log):
    with pytest.raises(ArithmeticError, match="x is 99"):
        sweep(square, [{"x": 1}, {"x": 99}, {"x": 2}], log, n_jobs=1)
    assert squares(log.records().values()) == [1]
    assert squares(sweep(square, [{"x": 1}, {"x": 2}], log, n_jobs=1)) == [1, 4]


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace(b'"square": 49', b'"square": 48'),
                                    lambda text: text + b'{"settings": {"x"', lambda text: text + b"\xff\n[1]\n"])
def test_a_cut_off_or_altered_line_is_run_again(log, damage):
    sweep(square, GRID, log, n_jobs=1)
    log.path.write_bytes(damage(log.path.read_bytes()))
    assert squares(sweep(square, GRID, log, n_jobs=1)) == [x * x for x in range(8)]
    assert squares(sweep(square, GRID, log, n_jobs=1)) == [x * x for x in range(8)]


def sealed(record):
    """A line whose checksum is right."""
    return json.dumps({**record, "sha256": checksum(record)})


@pytest.mark.parametrize("line", ["[" * 50_000, "[1]", "{}", sealed({"settings": {"x": 1}, "result": {}}),
                                  sealed({"lineage": LINEAGE, "result": {}})])
def test_a_line_that_holds_something_else_is_passed_over(log, line):
    log.append({"x": 2}, {"square": 4})
    with open(log.path, "a") as file:
        file.write(f"{line}\n")
    log.append({"x": 3}, {"square": 9})
    assert squares(log.records().values()) == [4, 9]


@pytest.mark.parametrize("n_jobs", [0, 1.5, None, "all"])
def test_a_wrong_number_of_processes_is_named(log, n_jobs):
    with pytest.raises(ValueError, match="n_jobs="):
        sweep(square, GRID, log, n_jobs=n_jobs)


def test_a_drive_that_refuses_for_a_moment_loses_no_result(log, monkeypatch):
    """fsync refused as on WSL's drives, the first open refused as by a virus scanner, and no lock asked for."""
    refusals = [OSError(errno.EACCES, "held by another program")]

    def hesitant(path, *how, **options):
        if refusals and Path(path) == log.path:
            raise refusals.pop()
        return open(path, *how, **options)

    def refuse(number):
        raise OSError(errno.EINVAL, "no fsync here")

    monkeypatch.setattr(sweep_module, "open", hesitant, raising=False)
    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(disk, "WAITS", (0, 0))
    assert squares(sweep(square, GRID, log, n_jobs=1)) == [x * x for x in range(8)] and not refusals
    refusals += [OSError(errno.EIO, "gone")] * 3
    with pytest.raises(WorkspaceError, match="could not be written"):
        log.append({"x": 9}, {})


@pytest.mark.slow
def test_two_at_once_leave_every_line_whole(log):
    """Two processes append lines of half a megabyte."""
    script = PROLOGUE + f"""
log = Log(Path({str(log.path)!r}), LINEAGE)
for x in range(20):
    log.append({{"x": x, "who": sys.argv[1]}}, {{"text": sys.argv[1] * 500_000}})
"""
    both = [subprocess.Popen([sys.executable, "-c", script, who]) for who in "ab"]
    assert [one.wait() for one in both] == [0, 0]
    assert len(log.records()) == 40 == sum(map(bool, log.path.read_bytes().splitlines()))    # an empty line does no harm


def test_results_of_another_model_are_not_taken(log):
    sweep(square, GRID, log, n_jobs=1)
    other = Log(log.path, {"cvae.pt": "def"})
    assert other.records() == {} and len(Log(log.path).records()) == 8
    assert squares(sweep(square, GRID[:2], other, n_jobs=1)) == [0, 1]


@pytest.fixture
def cluster():
    """A real Dask cluster of two worker processes on this machine."""
    distributed = pytest.importorskip("distributed")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY / folder) for folder in FOLDERS])  # for the workers
    try:
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as local:
            yield local
    finally:
        del os.environ["PYTHONPATH"]


@pytest.mark.slow
def test_a_dask_worker_is_killed_and_every_result_comes_once(log, tmp_path, cluster):
    """kill -9 to the first worker once the sweep is under way: its run is done again, and nothing is there twice."""
    calls = tmp_path / "calls"
    calls.mkdir()
    script = PROLOGUE + f"""
grid = [{{"x": x, "folder": {str(calls)!r}}} for x in range(8)]
records = sweep(slowly, grid, Log(Path({str(log.path)!r}), LINEAGE), cluster={cluster.scheduler_address!r})
print(sum(record["result"]["square"] for record in records))
"""
    sweeping = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    victim, deadline = cluster.workers[0].pid, time.monotonic() + 60
    while len(list(calls.glob(f"*-{victim}"))) < 2 and time.monotonic() < deadline:     # its second run has just begun
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    assert sweeping.communicate(timeout=120)[0].splitlines()[-1] == str(sum(x * x for x in range(8)))
    lines = [json.loads(line)["settings"]["x"] for line in log.path.read_text().splitlines()]
    assert sorted(lines) == list(range(8))
    assert len(list(calls.iterdir())) > 8  # the victim's run was really done again


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(log, tmp_path):
    """kill -9 to the whole sweep; the next one runs the rest."""
    calls = tmp_path / "calls"
    calls.mkdir()
    script = PROLOGUE + f"""
grid = [{{"x": x, "folder": {str(calls)!r}}} for x in range(8)]
sweep(slowly, grid, Log(Path({str(log.path)!r}), LINEAGE), n_jobs=1)
"""
    victim = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    while len(log.records()) < 3:
        time.sleep(0.05)
    victim.kill()
    victim.wait()
    done = len(log.records())
    grid = [{"x": x, "folder": str(calls)} for x in range(8)]
    assert done < 8 and squares(sweep(count, grid, log, n_jobs=1)) == [x * x for x in range(8)]
    assert len(list(calls.iterdir())) <= 8 + 1  # what was under way is done again, nothing else
