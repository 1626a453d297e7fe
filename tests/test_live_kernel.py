"""The five notebooks in a live kernel, as people use them: cells run twice, out of order, interrupted, numbers edited.

The invariant: whatever finished file a workspace holds is the one that a clean run with its recorded settings writes, byte
for byte, and no finished file is ever lost. pytest -m live --sequences 100 runs that many random sequences of moves.
"""

import hashlib
import json
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest
from cells import STEMS, sources
from conftest import REPOSITORY
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from jupyter_client.manager import start_new_kernel

from amnesia.storage.files import Saved

MAKES = dict(zip(STEMS, ("cvae", "fim-cvae", "amnesiac", "samples", "evaluation"), strict=True))
BUDGET = {"01_train_cvae": {"steps": 40, "batch_size": 16}, "02_compute_fim": {"n_samples": 1500},
          "03_forget": {"steps": 30, "batch_size": 16}, "04_sample": {"n_per_class": 20}, "05_evaluate": {}}
EDITS = {"01_train_cvae": {"steps": [40, 25], "learning_rate": [3e-3, 1e4], "seed": [0, 1], "dropout": [0.1, 0.5]},
         "02_compute_fim": {"n_samples": [1500, 1000], "seed": [0, 1]},
         "03_forget": {"lam": [0.3, 40.0], "steps": [30, 20], "forget": [[0], [3]], "surrogate": ["noise", 7]},
         "04_sample": {"n_per_class": [20, 30], "seed": [0, 1]}, "05_evaluate": {"seed": [0, 1]}}
# Progress is looked at and saved every few steps, and not every few seconds. The first optimizer imports half of torch: an
# interrupt in the middle of an import leaves Python's own modules half made, which only a restart mends.
OFTEN = f"""
import sys as _sys, torch as _torch
_torch.optim.AdamW([_torch.zeros(1)])
_sys.path.append({str(Path(__file__).parent)!r})
from clock import tick as _tick
_tick(0.3)
"""
moves, ends = Counter(), Counter()


class Kernel:
    """One live kernel in the notebooks' folder."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(cwd=str(REPOSITORY / "notebooks"),
                                                     stderr=subprocess.DEVNULL)

    def run(self, code):
        """Runs code; returns "ok", or the name and the text of the exception that ended it."""
        reply = self.client.execute_interactive(code, timeout=300, output_hook=lambda message: None)["content"]
        return "ok" if reply["status"] == "ok" else (reply["ename"], reply["evalue"])

    def run_and_interrupt(self, code, after):
        """The same, interrupted so many seconds later. An interrupt that hits the kernel's own code, before or after the
        cell's, can lose its reply for ever: then the kernel is restarted, as a reader would."""
        timer = threading.Timer(after, self.manager.interrupt_kernel)
        timer.start()
        try:
            reply = self.client.execute_interactive(code, timeout=30, output_hook=lambda message: None)["content"]
            timer.join()
            self.client.execute_interactive("pass", timeout=30, output_hook=lambda message: None)    # if it came late
        except TimeoutError:
            self.restart()
            return "Hung", "no reply"
        return "ok" if reply["status"] == "ok" else (reply["ename"], reply["evalue"])

    def restart(self):
        self.manager.restart_kernel(now=True)
        self.client.wait_for_ready(timeout=60)

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def injected(stem, workspace, parameters):
    """The parameter cell with other values."""
    chosen = {"workspace": str(workspace), "device": "cpu", **BUDGET[stem], **parameters}
    return sources(stem)[0] + "".join(f"\n{name} = {value!r}" for name, value in chosen.items())


def finished(workspace, stem=""):
    """{path: digest} of the finished files, those kept beside them included, but for what is unfinished or unusable."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (workspace / "checkpoints").glob(f"{stem}*.*")
            if path.suffix in (".pt", ".json") and ".un" not in path.name}


@pytest.fixture(scope="module")
def ground(series, tmp_path_factory):
    """(inputs, clean): a workspace with the series' files in it; and clean(stem, parameters), the file that an empty
    namespace makes of them, run top to bottom in a kernel of its own."""
    kernel, inputs, made = Kernel(), tmp_path_factory.mktemp("inputs"), {}
    shutil.copytree(series[0] / "checkpoints", inputs / "checkpoints")

    def clean(stem, parameters):
        key = stem, json.dumps(parameters, sort_keys=True)
        if key not in made:
            workspace = tmp_path_factory.mktemp("clean")
            shutil.copytree(inputs, workspace, dirs_exist_ok=True)
            for path in finished(workspace, MAKES[stem]):
                path.unlink()
            kernel.run("%reset -f")
            for number, source in enumerate(sources(stem)):
                end = kernel.run(injected(stem, workspace, parameters) if number == 0 else source)
                assert end == "ok", (stem, parameters, end)
                if "stage.save(" in source:
                    break
            made[key], = finished(workspace, MAKES[stem])
        return made[key]

    yield inputs, clean
    kernel.stop()


@pytest.fixture(scope="module")
def kernel():
    """The reader's kernel."""
    kernel = Kernel()
    yield kernel
    kernel.stop()


def machine(kernel, inputs, clean, folder):
    """The state machine: one notebook, one workspace, and a reader who does as readers do."""

    class Reader(RuleBasedStateMachine):
        @initialize(stem=st.sampled_from(STEMS))
        def opens(self, stem):
            moves["sequence"] += 1
            self.stem, self.edited, self.ever, self.last = stem, {}, set(), 0
            self.trains = next(n for n, source in enumerate(sources(stem)) if "stage.save(" in source)
            self.workspace = Path(folder) / f"reader-{moves['sequence']}"
            shutil.copytree(inputs, self.workspace)
            for path in finished(self.workspace, MAKES[stem]):
                path.unlink()
            kernel.run("%reset -f")
            for number in range(self.trains):                           # all above the cell that trains
                self.does("run", number)

        def does(self, move, number, interrupt_after=None):
            source = sources(self.stem)[number]
            if number == 0:
                source = injected(self.stem, self.workspace, self.edited)
            end = kernel.run(source) if interrupt_after is None else kernel.run_and_interrupt(source, interrupt_after)
            if number == 1 and end == "ok":
                kernel.run(OFTEN)
            moves[move] += 1
            ends[end if end == "ok" else end[0]] += 1
            if number == 2 or "stage.save(" in source:                  # the cells that make a file refuse in a sentence
                assert end == "ok" or end[0] in ("WorkspaceError", "NameError", "KeyboardInterrupt", "Diverged", "Hung"), end
            self.last = number
            return end

        @rule(data=st.data())
        def runs_a_cell(self, data):
            self.does("run", data.draw(st.integers(0, len(sources(self.stem)) - 1)))

        @rule()
        def runs_the_cell_that_trains(self):
            self.does("train", self.trains)

        @rule()
        def runs_it_again(self):
            self.does("again", self.last)

        @rule(after=st.floats(0.0, 1.0))
        def interrupts_the_training(self, after):
            self.does("interrupt", self.trains, after)

        @rule(data=st.data())
        def edits_a_number_and_runs_on(self, data):
            name = data.draw(st.sampled_from(sorted(EDITS[self.stem])))
            self.edited[name] = data.draw(st.sampled_from(EDITS[self.stem][name]))
            start = data.draw(st.just(self.trains) | st.integers(1, len(sources(self.stem)) - 1))
            for number in (0, *range(start, len(sources(self.stem)))):
                if self.does("edit and run on", number) != "ok":
                    break                                               # as Run All Below does

        @rule()
        def restarts(self):
            if moves["restart"] % 5:                                    # seconds each, so mostly the namespace alone
                kernel.run("%reset -f")
            else:
                kernel.restart()
            moves["restart"] += 1
            for number in range(3):
                self.does("run", number)

        @rule(data=st.data())
        @precondition(lambda self: self.stem != "01_train_cvae")
        def another_tab_finishes(self, data):
            """A file of other settings appears, as a clean run elsewhere would save it: the one there is kept."""
            name = data.draw(st.sampled_from(sorted(EDITS[self.stem])))
            path = clean(self.stem, {name: data.draw(st.sampled_from(EDITS[self.stem][name]))})
            for mine, digest in finished(self.workspace, path.stem).items():
                mine.rename(mine.with_name(f"{path.stem}.{digest[:8]}{path.suffix}"))
            shutil.copy(path, self.workspace / "checkpoints")
            moves["another tab"] += 1

        @invariant()
        def every_file_is_that_of_a_clean_run(self):
            if not hasattr(self, "workspace"):
                return
            now = finished(self.workspace, MAKES[self.stem])
            for path, digest in now.items():
                if digest not in self.ever:
                    recorded = Saved(path).settings if path.name.count(".") == 1 else {}
                    chosen = {name: recorded[name] for name in EDITS[self.stem] if name in recorded}
                    used = {name: value for name, value in chosen.items()
                            if value != BUDGET[self.stem].get(name, EDITS[self.stem][name][0])}
                    right = hashlib.sha256(clean(self.stem, used).read_bytes()).hexdigest()
                    assert digest == right, f"{path.name} is not what a clean run with {used} writes"
            self.ever |= set(now.values())
            assert self.ever <= set(now.values()), "a finished file was lost"

    return Reader


@pytest.mark.parametrize("stem", STEMS)
def test_the_first_value_of_each_edit_is_the_default(stem):
    """Which the machine takes for granted when it asks for the clean run of a file's settings."""
    names = {}
    exec(injected(stem, "", {}), names)
    assert {name: values[0] for name, values in EDITS[stem].items()} == {name: names[name] for name in EDITS[stem]}


CUT = """
from amnesia.storage import stage as _stage
_save_progress = _stage.Stage.save_progress
def _cut(stage, *content):
    _stage.Stage.save_progress = _save_progress
    _save_progress(stage, *content)
    raise KeyboardInterrupt
_stage.Stage.save_progress = _cut
"""


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEMS[:3])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(kernel, ground, tmp_path, stem):
    """Interrupted right after its first save of progress, and then run again."""
    inputs, clean = ground
    workspace = Path(shutil.copytree(inputs, tmp_path / "cut"))
    for path in finished(workspace, MAKES[stem]):
        path.unlink()
    kernel.run("%reset -f")
    trains = next(n for n, source in enumerate(sources(stem)) if "stage.save(" in source)
    for number in range(trains):
        assert kernel.run(sources(stem)[number] if number else injected(stem, workspace, {})) == "ok"
        assert number != 1 or kernel.run(OFTEN + CUT) == "ok"
    assert kernel.run(sources(stem)[trains])[0] == "KeyboardInterrupt" and list(workspace.rglob("*.unfinished.pt"))
    assert kernel.run(sources(stem)[trains]) == "ok"
    path, = finished(workspace, MAKES[stem])
    assert path.read_bytes() == clean(stem, {}).read_bytes()


@pytest.mark.slow
@pytest.mark.live
def test_whatever_a_reader_does_the_files_are_right(kernel, ground, tmp_path, request, record_property):
    count = request.config.getoption("--sequences")
    # Without a search for a shorter sequence, which takes an hour where each takes seconds: the first that fails is shown.
    chosen = settings(max_examples=count, stateful_step_count=8, deadline=None, derandomize=True, database=None,
                      phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=False)
    run_state_machine_as_test(machine(kernel, *ground, tmp_path), settings=chosen)
    record_property("what was done in a live kernel", ", ".join(f"{n} × {move}" for move, n in moves.items()) + " | "
                    + ", ".join(f"{n} {end}" for end, n in ends.items()))
    assert moves["sequence"] >= count
