"""The notebooks in a live kernel, as people use them: cells run twice, out of order, interrupted; numbers and functions edited.

Whatever is done, a finished file is that of a clean run with its recorded settings, byte for byte, and no finished file is
lost. The clean run is one of the same cells in this process; the inputs are the released files.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from cells import STEMS, execute, makes, sources
from conftest import REPOSITORY
from jupyter_client.manager import start_new_kernel

from amnesia import Saved, grow

pytestmark = [pytest.mark.slow, pytest.mark.live]
BUDGET = {"01": {"steps": 20, "batch_size": 16, "dataset": "noise.npz"}, "03": {"steps": 12, "batch_size": 16}}
# Progress is looked at and saved at every step. The first optimizer imports half of torch: an interrupt in the middle of an
# import leaves Python's own modules half made, which only a restart mends.
OFTEN = f"""
import amnesia as _amnesia, sys as _sys, torch as _torch
_amnesia.grow.__defaults__ = 300,
_torch.optim.AdamW([_torch.zeros(1)])
_sys.path.append({str(Path(__file__).parent)!r})
from clock import tick as _tick
_tick(100)
"""
CUT = """
from amnesia import Stage as _Stage
_save_progress = _Stage.save_progress
def _cut(stage, *content):
    _Stage.save_progress = _save_progress
    _save_progress(stage, *content)
    raise KeyboardInterrupt
_Stage.save_progress = _cut
"""


class Reader:
    """Who has one notebook open: its cells by what they hold, and what they said."""

    def __init__(self, kernel, stem, workspace):
        self.kernel, self.cells = kernel, [*sources(stem)]
        self.workspace, self.budget = workspace, BUDGET[stem[:2]]
        self.run_code("%reset -f")

    def run_code(self, source):
        """"ok", or the name of the exception that ended it; what it printed is in `said`."""
        said = []
        reply = self.kernel.execute_interactive(source, timeout=300, output_hook=said.append)["content"]
        self.said = "".join(message["content"].get("text", "") for message in said)
        return "ok" if reply["status"] == "ok" else reply["ename"]

    def place(self, holds):
        return next(place for place, source in enumerate(self.cells) if holds in source)

    def edit(self, old, new):
        place = self.place(old)
        self.cells[place] = self.cells[place].replace(old, new)

    def run(self, holds):
        """The cell that holds this text; the parameters' with others below."""
        source = self.cells[self.place(holds)]
        if holds == "workspace = ":
            source += "".join(f"\n{name} = {value!r}" for name, value in
                              {"workspace": str(self.workspace), "device": "cpu", **self.budget}.items())
        return self.run_code(source)

    def run_all(self, until="stage.save(", then=""):
        self.run("workspace = ")
        for source in self.cells[1:self.place(until)]:
            assert not makes([source]) or self.run_code(source) == "ok"
        assert self.run_code(then) == "ok"
        return self.run(until)

    def finished(self, name):
        """The bytes of the file and of those kept beside it, told by their settings."""
        paths = [path for path in (self.workspace / "checkpoints").rglob(f"{name}.*pt") if "unfinished" not in path.name]
        return sorted(paths, key=lambda path: len(path.name))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all, with a little data set of random pictures."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    np.savez(folder / "noise.npz", images=random.integers(256, size=(100, 8, 8), dtype=np.uint8), labels=np.arange(100) % 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMNESIA_DATA", str(folder))
        manager, client = start_new_kernel(cwd=str(REPOSITORY / "notebooks"), stderr=subprocess.DEVNULL)
        yield client
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def open_notebook(kernel, tmp_path):
    return lambda number: Reader(kernel, next(stem for stem in STEMS if stem.startswith(number)), tmp_path / "reader")


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """clean(reader): the bytes that a clean run of a reader's cells, as they stand, makes of their numbers."""
    monkeypatch.setattr(grow, "__defaults__", (300,))

    def made(reader):
        folder = tmp_path / f"clean-{len([*tmp_path.iterdir()])}"
        cells = makes(source for source in reader.cells if "#@title" not in source)
        names = execute(cells, "stage.save(", workspace=str(folder), **reader.budget)
        return names["stage"].path.read_bytes()

    return made


@pytest.mark.parametrize(("number", "name"), [("01", "cvae"), ("03", "amnesiac-0")])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(open_notebook, clean, number, name):
    """Interrupted right after its first save of progress, and then run again."""
    reader = open_notebook(number)
    assert reader.run_all(then=OFTEN + CUT) == "KeyboardInterrupt" and not reader.finished(name)
    assert reader.run("stage.save(") == "ok" and "Going on from step" in reader.said
    path, = reader.finished(name)
    right = clean(reader)
    assert path.read_bytes() == right
    assert reader.run("stage.save(") == "ok" and path.read_bytes() == right                 # and once more


def test_a_changed_number_has_no_effect_until_its_stage_is_begun_anew(open_notebook, clean):
    reader = open_notebook("03")
    assert reader.run_all() == "ok"
    first = clean(reader)
    reader.budget = {**reader.budget, "lam": 40.0, "overwrite": True}
    reader.run("workspace = ")
    assert reader.run("stage.save(") == "ok" and "lam" in reader.said and "without effect" in reader.said
    assert [path.read_bytes() for path in reader.finished("amnesiac-0")] == [first]
    for holds in ("# This stage", "def distil", "ewc_penalty", "def loss", "def snapshot", "stage.save("):
        assert reader.run(holds) == "ok"
    reader.budget.pop("overwrite")
    now, kept = reader.finished("amnesiac-0")
    assert (now.read_bytes(), kept.read_bytes()) == (clean(reader), first) and Saved(now).settings["lam"] == 40


def test_an_edited_function_makes_the_file_again_and_an_edited_comment_does_not(open_notebook, clean):
    """31.5: not loss() itself, but one that it calls. The old file is kept, and comes back with the old code."""
    reader = open_notebook("03")
    assert reader.run_all() == "ok"
    first = clean(reader)
    reader.edit("def noise(c_f):", "def noise(c_f):  # of one's own")
    assert reader.run("def noise(") == reader.run("stage.save(") == "ok" and len(reader.finished("amnesiac-0")) == 1
    reader.edit("x = torch.rand(len(c_f) // 2, P", "x = 0.0 * torch.rand(len(c_f) // 2, P")
    assert reader.run("def noise(") == reader.run("stage.save(") == "ok" and "noise() was edited" in reader.said
    now, kept = reader.finished("amnesiac-0")
    assert (now.read_bytes(), kept.read_bytes()) == (clean(reader), first) and now.read_bytes() != first


def test_out_of_order_and_beside_another_tab_nothing_is_lost(open_notebook, clean):
    reader = open_notebook("03")
    assert reader.run("stage.save(") == reader.run("def loss") == "NameError"
    assert reader.run_all(until="def loss") == reader.run("def snapshot") == "ok"
    other = open_notebook("03")
    other.kernel, other.budget = reader.kernel, {**BUDGET["03"], "steps": 9}
    theirs = clean(other)
    path = reader.workspace / "checkpoints" / "amnesiac-0.pt"
    path.write_bytes(theirs)                                            # another tab has finished meanwhile
    reader.run_all()
    now, kept = reader.finished("amnesiac-0")
    assert (now.read_bytes(), kept.read_bytes()) == (clean(reader), theirs)
    now.write_bytes(theirs)                                             # and once more: this kernel's own run counts
    assert reader.run("stage.save(") == "ok" and reader.run("history[\"terms\"]") == "ok"
    assert reader.run_code("assert len(history['terms']['forget']) == 12") == "ok"


SHOWS = ("import sys, torch; sys.path.append('.'); from amnesia import play; "
         "play(lambda label, z: torch.zeros(1, 28, 28), ['picture'], torch.zeros(2), '0123456789')")


def test_the_panel_is_shown_only_where_someone_can_use_it(kernel):
    """To a front end that can answer an input(), and not to papermill."""
    def outputs(code, someone_there):
        seen = []
        reply = kernel.execute_interactive(code, allow_stdin=someone_there, output_hook=seen.append, timeout=300)
        assert reply["content"]["status"] == "ok", reply["content"]
        return [message["content"] for message in seen if message["msg_type"] in ("display_data", "stream")]

    view, = outputs(SHOWS, someone_there=True)
    assert "application/vnd.jupyter.widget-view+json" in view["data"]
    assert outputs(SHOWS, someone_there=False) == []
