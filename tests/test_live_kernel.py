"""The notebooks in a live kernel, as people use them: cells run twice, out of order, interrupted; numbers and functions edited.

Whatever is done, a finished file is that of a clean run with its recorded settings, byte for byte, and none is lost.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from cells import STEMS, execute, makes, sources
from conftest import REPOSITORY
from jupyter_client.manager import start_new_kernel

from amnesia import Saved, grow

pytestmark = [pytest.mark.slow, pytest.mark.live, pytest.mark.usefixtures("no_figures")]
BUDGET = {"01": "steps, batch_size, dataset = 20, 16, 'noise.npz'", "03": "steps, batch_size = 12, 16"}
# Once: progress is saved at the first step, and then the cell is interrupted; not within the imports of the first optimizer
CUT = f"""
import sys as _sys, torch as _torch
from amnesia import Stage as _Stage
_torch.optim.AdamW([_torch.zeros(1)])
_sys.path.append({str(Path(__file__).parent)!r})
from clock import tick as _tick
_tick(100)
_save_progress = _Stage.save_progress
def _cut(stage, *content):
    _Stage.save_progress = _save_progress
    _save_progress(stage, *content)
    raise KeyboardInterrupt
_Stage.save_progress = _cut
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all, with a little data set of random pictures."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    np.savez(folder / "noise.npz", images=random.integers(256, size=(100, 8, 8), dtype=np.uint8), labels=np.arange(100) % 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMNESIA_DATA", str(folder))
        patch.setattr(grow, "__defaults__", (300,))
        manager, client = start_new_kernel(cwd=str(REPOSITORY / "notebooks"), stderr=subprocess.DEVNULL)
        yield client
        client.stop_channels()
        manager.shutdown_kernel(now=True)


class Reader:
    """Who has one notebook open: its cells, and what they said."""

    def __init__(self, kernel, number, workspace):
        self.kernel, self.folder = kernel, workspace / "checkpoints"
        self.cells = makes(sources(next(stem for stem in STEMS if stem.startswith(number))))
        self.cells[0] += f"\nworkspace, device = {str(workspace)!r}, 'cpu'\n{BUDGET[number]}"
        self.cells[1] += "\nimport amnesia as _amnesia\n_amnesia.grow.__defaults__ = 300,"
        self.code("%reset -f")

    def code(self, source):
        """"ok", or the name of the exception that ended it; what it printed is in `said`."""
        said = []
        reply = self.kernel.execute_interactive(source, timeout=300, output_hook=said.append)["content"]
        self.said = "".join(message["content"].get("text", "") for message in said)
        return reply.get("ename", "ok")

    def run(self, *texts):
        """The cells that hold these texts; how the last one ended."""
        return [self.code(next(cell for cell in self.cells if text in cell)) for text in texts][-1]

    def run_until(self, text):
        for source in self.cells[:next(place for place, cell in enumerate(self.cells) if text in cell)]:
            assert self.code(source) == "ok"

    def edit(self, old, new):
        assert old in "".join(self.cells)
        self.cells = [cell.replace(old, new) for cell in self.cells]

    def clean(self, folder):
        """The bytes that a clean run of the cells, as they stand, makes."""
        cells = [source for source in self.cells if "#@title" not in source]
        return execute(cells, "stage.save(", workspace=str(folder))["stage"].path.read_bytes()


@pytest.mark.parametrize(("number", "name"), [("01", "cvae.pt"), ("03", "amnesiac-0.pt")])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(kernel, tmp_path, number, name):
    reader = Reader(kernel, number, tmp_path)
    reader.run_until("stage.save(")
    reader.code(CUT)
    assert reader.run("stage.save(") == "KeyboardInterrupt" and not [*tmp_path.rglob(name)]
    assert reader.run("stage.save(") == "ok" and "Going on from step" in reader.said
    path, = tmp_path.rglob(name)
    right = reader.clean(tmp_path / "clean")
    assert path.read_bytes() == right
    assert reader.run("stage.save(") == "ok" and "Loaded" in reader.said and path.read_bytes() == right


def test_what_is_edited_counts_once_it_is_run_and_the_old_file_is_kept(kernel, tmp_path):
    """A number, when its stage is begun anew; a function that loss() calls, but not its comments."""
    reader, path = Reader(kernel, "03", tmp_path), tmp_path / "checkpoints" / "amnesiac-0.pt"
    assert reader.run("stage.save(") == "NameError"
    reader.run_until("stage.save(")
    assert reader.run("stage.save(") == "ok"
    files = [reader.clean(tmp_path / "clean")]
    reader.edit("steps, batch_size = 12, 16", "steps, batch_size, lam = 12, 16, 40.0")
    reader.edit("def noise(c_f):", "def noise(c_f):  # of one's own")
    assert reader.run("workspace = ", "def noise(", "stage.save(") == "ok" and "without effect" in reader.said
    assert [path.read_bytes()] == files
    reader.run("# This stage", "def distil", "ewc_penalty", "def loss", "def snapshot")
    assert reader.run("stage.save(") == "ok" and "lam=40.0 (was " in reader.said and Saved(path).settings["lam"] == 40
    files.append(reader.clean(tmp_path / "clean-1"))
    reader.edit("x = torch.rand(len(c_f) // 2, P", "x = 0.0 * torch.rand(len(c_f) // 2, P")
    assert reader.run("def noise(", "stage.save(") == "ok" and "noise() was edited" in reader.said
    files.append(reader.clean(tmp_path / "clean-2"))
    assert path.read_bytes() == files[-1]
    assert {file.read_bytes() for file in path.parent.glob("amnesiac-0.*")} == {*files} and len({*files}) == 3
