"""notebooks/run.py: which notebooks and parameters its words ask for, what it passes on, and how it ends.

Nothing is installed here; `.ci/run` starts with the real thing.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress

import nbformat
import papermill
import psutil
import pytest
import run
from conftest import REPOSITORY

FIVE = ["01_train_cvae", "02_compute_fim", "03_forget", "04_sample", "05_evaluate"]


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """[(notebook, the parameters that it was given)], as they would have been executed."""
    runs = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda path, copy, values, **_: runs.append((path.stem, values)))
    monkeypatch.setattr(run, "ROOT", tmp_path)
    return runs


@pytest.mark.parametrize(("words", "expected"), [
    ([], [(name, {}) for name in FIVE]),
    (["04", "03_forget", "03", "forget=[3, 8]", "lam=1e-4"],
     [("03_forget", {"forget": [3, 8], "lam": 1e-4}), ("04_sample", {"forget": [3, 8]})]),
    (["notebooks/05_evaluate.ipynb"], [("05_evaluate", {})]),
    ([r"notebooks\02_compute_fim.ipynb", "overwrite=true", "dataset=FashionMNIST", "workspace=C:\\a=b"],
     [("02_compute_fim", {"overwrite": True, "dataset": "FashionMNIST", "workspace": "C:\\a=b"})]),
    (["studies/2", "full=True"], [("2_which_term", {"full": True})])])
def test_words_choose_notebooks_and_parameters(executed, words, expected):
    assert run.run(words) == 0
    assert executed == expected


@pytest.mark.parametrize(("words", "message"), [
    (["03", "06"], "There is no notebook '06'. There are: 01_train_cvae, "),
    (["2_which_term"], "There is no notebook '2_which_term'."), (["=3"], "No notebook of these has a parameter ''."),
    (["04", "05", "lam=4"], "No notebook of these has a parameter 'lam'. They have: workspace, ")])
def test_a_word_that_fits_nothing_is_named_before_anything_runs(executed, words, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        run.run(words)
    assert not executed


def test_the_pages_commands_are_understood():
    pages = "".join((REPOSITORY / page).read_text() for page in ("README.md", "notebooks/README.md"))
    commands = re.findall(r"^python3 notebooks/run\.py(.*)$", pages, re.MULTILINE)
    assert len(commands) >= 6
    for words in map(shlex.split, commands):
        if words != ["test"]:
            notebooks, values = run.chosen(words)
            assert notebooks and len(values) == sum("=" in word for word in words)


def test_an_environment_is_made_once_and_again_when_the_requirements_change(monkeypatch, tmp_path):
    calls, answers = [], iter([0, 7, 0, 0, 0, 0])

    def call(*command):
        calls.append(command[2])
        if command[2] == "venv":
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text("")
        return next(answers)

    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(run, "call", call)
    monkeypatch.setenv("PATH", "")
    python = tmp_path / ".venv" / "bin" / "python"
    (tmp_path / "requirements.txt").write_text("torch")
    with pytest.raises(SystemExit) as error:                 # pip fails: its exit status, and another try the next time
        run.set_up("requirements.txt")
    assert error.value.code == 7
    assert run.set_up("requirements.txt") == run.set_up("requirements.txt") == python
    assert calls == ["venv", "pip"] * 2
    (tmp_path / "requirements.txt").write_text("torch>=2.6")
    run.set_up("requirements.txt")
    assert calls == ["venv", "pip"] * 3
    assert os.environ["PATH"].startswith(str(python.parent))


def test_the_words_reach_the_environment_or_pytest(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(run, "VENV", tmp_path)
    monkeypatch.setattr(run, "set_up", lambda requirements: requirements)
    monkeypatch.setattr(run, "call", lambda *command: calls.append(command) or 5)
    assert run.main(["test", "-k", "fisher"]) == run.main(["03", "forget=[3, 8]"]) == 5
    workers = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile")
    assert calls == [("requirements-dev.txt", "-m", "pytest", *workers, "-k", "fisher"),
                     ("requirements.txt", run.__file__, "03", "forget=[3, 8]")]
    with pytest.raises(SystemExit) as error:
        run.main(["--frobnicate"])
    assert error.value.code == 2


@pytest.fixture
def started(tmp_path):
    """started(source): the command as a terminal runs it, on a notebook of this one cell, in a process group of its own."""
    def start(source):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, tmp_path / "1_cell.ipynb")
        inner = (f"import run, sys; from pathlib import Path; run.ROOT = Path({str(tmp_path)!r}); "
                 "run.NOTEBOOKS = {'1_cell': run.ROOT / '1_cell.ipynb'}; sys.exit(run.run([]))")
        outer = f"import run, sys; sys.exit(run.call(sys.executable, '-c', {inner!r}))"
        return psutil.Popen([sys.executable, "-c", outer], env={**os.environ, "PYTHONPATH": str(REPOSITORY / "notebooks")},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                            # a shell's background job, as these tests may be, hands down that Ctrl-C is ignored
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    return start


@pytest.mark.parametrize(("source", "status", "printed", "complained"), [
    ("print('as it goes')", 0, "as it goes", ""),
    ("raise ValueError('forget=[]: nothing')", 1, "1_cell", "1_cell.ipynb stopped: ValueError: forget=[]: nothing\n")])
def test_the_exit_status_says_how_it_went(started, tmp_path, source, status, printed, complained):
    process = started(source)
    out, err = process.communicate()
    assert process.returncode == status and printed in out and complained in err
    assert (tmp_path / "executed" / "1_cell.ipynb").exists()


def test_ctrl_c_ends_the_kernel_too_and_says_how_to_go_on(started):
    process = started("import time\nprint('at work', flush=True)\ntime.sleep(600)")
    while process.stdout.readline() != "at work\n":
        assert process.poll() is None
    family = process.children(recursive=True)
    for _ in range(3):                                       # Jupyter can lose one: then one presses again
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            out, err = process.communicate(timeout=20)
            break
    assert process.returncode == 130 and "was interrupted. The same command goes on" in out
    assert "run.py" not in err                               # no traceback of ours; a kernel may leave one of its own
    assert len(family) >= 2 and not psutil.wait_procs(family, timeout=30)[1]
