"""Logs of runs: every result once, whatever stops in between."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from amnesia.checkpoints import sha256
from amnesia_studies import logs
from amnesia_studies.logs import Log, sweep

LINEAGE = {"cvae.pt": "abc"}
GRID = [{"x": x} for x in range(8)]
PROLOGUE = f"""
import sys
sys.path[:0] = {[str(REPOSITORY / folder) for folder in ("notebooks", "notebooks/studies", "tests")]}
from pathlib import Path
from amnesia_studies.logs import Log, sweep
from test_logs import LINEAGE, slowly
"""


def square(x, folder=None, pause=0.0):
    """Leaves a file for each call, so that calls can be counted across processes."""
    if folder:
        (Path(folder) / f"{x}-{time.monotonic_ns()}").touch()
    time.sleep(pause)
    if x == 99:
        raise ArithmeticError("x is 99")
    return {"square": x * x}


def slowly(x, folder):
    return square(x, folder, pause=0.3)


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "studies.jsonl", LINEAGE)


def squares(records):
    return [record["result"]["square"] for record in records]


def test_results_come_in_the_order_of_the_grid_and_only_new_ones_are_run(log, tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()
    grid = [{"x": x, "folder": str(calls)} for x in (3, 1, 2)]
    assert squares(sweep(square, grid[:2], log, n_jobs=1, note="mine")) == [9, 1]
    records = sweep(square, [*grid, grid[0]], log, n_jobs=1)
    assert squares(records) == [9, 1, 4] and len(list(calls.iterdir())) == 3
    assert [record["line"] for record in records] == [1, 2, 3] and [r.get("note") for r in records] == ["mine", "mine", None]
    assert records[0]["versions"].keys() == {"amnesia", "python", "torch", "hardware"}


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
    for _ in range(2):
        assert squares(sweep(square, GRID, log, n_jobs=1)) == [x * x for x in range(8)]


def sealed(record):
    """A line whose checksum is right."""
    return json.dumps({**record, "sha256": sha256(json.dumps(record))})


@pytest.mark.parametrize("line", ["[" * 50_000, "[1]", "{}", sealed({"settings": {"x": 1}, "result": {}}),
                                  sealed({"lineage": LINEAGE, "result": {}})])
def test_a_line_that_holds_something_else_is_passed_over(log, line):
    log.append({"x": 2}, {"square": 4})
    with open(log.path, "a") as file:
        file.write(f"{line}\n")
    log.append({"x": 3}, {"square": 9})
    assert squares(log.records().values()) == [4, 9]
    assert [record["line"] for record in log.records().values()] == [1, 3]


@pytest.mark.parametrize("n_jobs", [0, 1.5, None, "all"])
def test_a_wrong_number_of_processes_is_named(log, n_jobs):
    with pytest.raises(ValueError, match="n_jobs="):
        sweep(square, GRID, log, n_jobs=n_jobs)


def test_a_drive_that_refuses_for_a_moment_loses_no_result(log, monkeypatch):
    refusals = [OSError("held by another program")]

    def hesitant(path, *how, **options):
        if refusals and Path(path) == log.path:
            raise refusals.pop()
        return open(path, *how, **options)

    monkeypatch.setattr(logs, "open", hesitant, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert squares(sweep(square, GRID, log, n_jobs=1)) == [x * x for x in range(8)] and not refusals
    refusals += [OSError("gone")] * 3
    with pytest.raises(OSError, match="gone"):
        log.append({"x": 9}, {})


def test_results_of_another_model_are_not_taken(log):
    sweep(square, GRID, log, n_jobs=1)
    other = Log(log.path, {"cvae.pt": "def"})
    assert other.records() == {} and len(Log(log.path).records()) == 8
    assert squares(sweep(square, GRID[:2], other, n_jobs=1)) == [0, 1]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(log, tmp_path):
    """kill -9 to the whole sweep; the next one runs the rest."""
    calls = tmp_path / "calls"
    calls.mkdir()
    grid = [{"x": x, "folder": str(calls)} for x in range(6)]
    script = PROLOGUE + f"sweep(slowly, {grid}, Log(Path({str(log.path)!r}), LINEAGE), n_jobs=1)"
    victim = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    while len(log.records()) < 2 and victim.poll() is None:
        time.sleep(0.05)
    victim.kill()
    victim.wait()
    assert len(log.records()) < 6 and squares(sweep(square, grid, log, n_jobs=1)) == [x * x for x in range(6)]
    assert len(list(calls.iterdir())) <= 6 + 1  # what was under way is done again, nothing else
