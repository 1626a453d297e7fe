"""Logs of runs: every result once, whatever stops in between."""

import pytest
import torch

from amnesia_studies import logs
from amnesia_studies.logs import Log, images_from_text, images_to_text, sweep

GRID = [{"x": x} for x in range(8)]


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "studies.jsonl", {"cvae.pt": "abc"})


def square(x):
    if x == 99:
        raise ZeroDivisionError
    return {"square": x * x, "threads": torch.get_num_threads()}


def squares(records):
    return [record["result"]["square"] for record in records]


def test_results_come_in_the_order_of_the_grid_and_only_new_ones_are_run(log):
    grid, threads = [{"x": x} for x in (3, 1, 2)], torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):                                  # which stops a sweep, and keeps what came before
        sweep(square, [*grid[:2], {"x": 99}], log, n_jobs=1, note="mine")
    records = sweep(square, [*grid, grid[0]], log, n_jobs=1)
    assert squares(records) == [9, 1, 4] and torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert [(record["line"], record.get("note"), record["result"]["threads"]) for record in records] == [
        (1, "mine", 1), (2, "mine", 1), (3, None, 1)]
    assert records[0]["versions"].keys() == {"amnesia", "python", "torch", "hardware"}
    other = Log(log.path, {"cvae.pt": "def"})                               # another model's are not taken
    assert other.records() == {} and squares(sweep(square, GRID[:2], other, n_jobs=1)) == [0, 1]
    assert squares(Log(log.path).records().values()) == [9, 1, 4, 0]


@pytest.mark.parametrize("damage", [
    lambda text: text[:-20], lambda text: text.replace(b'"square": 49', b'"square": 48'),
    lambda text: text + b"\xff\n[1]\n{}\n7\n"])
def test_a_cut_off_altered_or_foreign_line_is_passed_over_and_its_run_done_again(log, damage):
    sweep(square, GRID, log, n_jobs=1)
    log.path.write_bytes(damage(log.path.read_bytes()))
    for _ in range(2):
        assert squares(sweep(square, [*GRID, {"x": 8}], log, n_jobs=1)) == [x * x for x in range(9)]


def test_a_drive_that_refuses_is_asked_once_more(log, monkeypatch):
    """By retry(), of test_files.py."""
    writes = []
    monkeypatch.setattr(logs, "retry", writes.append)
    log.append({"x": 7}, {"square": 49})
    assert log.records() == {}
    writes[0]()
    assert squares(log.records().values()) == [49]


def test_pictures_survive_the_log():
    images = torch.randint(256, (3, 784), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(images_from_text(images_to_text(images)), images.view(3, 28, 28))
