"""notebooks/run.py: which notebooks and parameters its words ask for, what it passes on, and how it ends.

What is installed here is a package of nothing; `.ci/run` starts with the real thing.
"""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

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
    ([r"notebooks\02_compute_fim.ipynb", "overwrite=True", "dataset=FashionMNIST", "workspace=C:\\a=b"],
     [("02_compute_fim", {"overwrite": True, "dataset": "FashionMNIST", "workspace": "C:\\a=b"})]),
    (["studies/2", "full=True"], [("2_which_term", {"full": True})])])
def test_words_choose_notebooks_and_parameters(executed, words, expected):
    assert run.run(words) == 0
    assert executed == expected


@pytest.mark.parametrize(("words", "message"), [
    (["03", "06"], "There is no notebook '06'. There are: 01_train_cvae, "),
    (["2_which_term"], "There is no notebook '2_which_term'."), (["=3"], "No notebook of these has a parameter ''."),
    (["04", "05", "lam=4"], "No notebook of these has a parameter 'lam'. They have: "),
    (["01", "overwrite=FALSE"], "overwrite=FALSE: expected True or False."),
    (["04", "use_drive=1"], "use_drive=1: expected True or False."), (["studies/2", "full=no"], "full=no: expected ")])
def test_a_word_that_fits_nothing_is_named_before_anything_runs(executed, words, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        run.run(words)
    assert not executed


def test_the_pages_commands_are_understood():
    pages = "".join((REPOSITORY / page).read_text() for page in ("README.md", "notebooks/README.md"))
    commands = re.findall(r"^python3 notebooks/run\.py(.*)$", pages, re.MULTILINE)
    assert len(commands) >= 6
    for words in map(shlex.split, commands):
        if words not in (["lab"], ["test"]):
            notebooks, values = run.chosen(words)
            assert notebooks and len(values) == sum("=" in word for word in words)


def add_wheel(folder, version):
    """A package `tiny` of this version, for pip to find."""
    files = {"METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n", "RECORD": "",
             "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        for name, text in files.items():
            wheel.writestr(f"tiny-{version}.dist-info/{name}", text)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project that requires `tiny` alone: project.set_up(shell) sets it up from a shell with these variables."""
    root = tmp_path_factory.mktemp("the project")
    (root / "notebooks").mkdir()
    shutil.copy(run.__file__, root / "notebooks")
    (root / "requirements.txt").write_text("# a comment\n\ntiny>=1\n")
    add_wheel(root, "1.0")
    python = root / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": root.as_uri(), "PIP_CONFIG_FILE": os.devnull}
    of_nobody = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}

    def set_up(shell=()):
        shell = {**offline, **dict(shell)}  # set inside, for a PYTHONHOME that leads nowhere stops this Python too
        code = (f"import os, run; os.environ.update({shell!r}); print(run.set_up('requirements.txt'), "
                "*os.environ.keys() & {'PYTHONPATH', 'PYTHONHOME'})")  # which kernels would inherit
        return subprocess.run([sys.executable, "-c", code], cwd=root / "notebooks", env=of_nobody,
                              capture_output=True, text=True)

    def version():
        """Of `tiny` in the environment, "" if it is not there."""
        code = "from importlib.metadata import version; print(version('tiny'))"
        return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True).stdout.strip()

    return SimpleNamespace(root=root, python=python, set_up=set_up, version=version)


@pytest.fixture
def without_tiny(project):
    """The project, set up, and `tiny` taken away behind its back."""
    assert project.set_up().returncode == 0
    for path in project.root.glob(".venv/**/site-packages/tiny*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert project.version() == ""
    return project


@pytest.mark.slow
def test_an_environment_is_made_and_filled_when_there_is_need(project):
    first, again = project.set_up(), project.set_up()
    assert "Installing" in first.stdout and "Successfully installed tiny-1.0" in first.stdout
    assert again.stdout == f"{project.python}\n" and project.version() == "1.0"
    add_wheel(project.root, "2.0")
    (project.root / "requirements-dev.txt").write_text("-r requirements.txt\n")
    (project.root / "requirements.txt").write_text("tiny>=2\n")
    assert "Successfully installed tiny-2.0" in project.set_up().stdout and project.version() == "2.0"


@pytest.mark.slow
def test_a_package_that_is_gone_is_installed_again(without_tiny):
    assert "made anew" not in without_tiny.set_up().stdout and without_tiny.version()


def python_gone(python):
    python.unlink()
    python.symlink_to("/nowhere/python3")


def of_another_system(python):
    python.unlink()
    python.write_bytes(b"MZ\x90")
    python.chmod(0o755)


def nothing_but_another_folder(python):
    shutil.move(python.parent, python.parent.with_name("Scripts"))


def too_old(python):
    """It says that it is 3.10."""
    real = python.resolve()
    python.unlink()
    python.write_text(f'#!/bin/sh\nshift 2\nexec "{real}" -I -c \'import sys; sys.version_info = (3, 10, 13); '
                      'exec(sys.argv.pop(1))\' "$@"\n')
    python.chmod(0o755)


def without_pip(python):
    for path in python.parents[1].glob("lib/*/site-packages/pip"):
        shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the folders are those of other systems")
@pytest.mark.parametrize("spoil", [python_gone, of_another_system, nothing_but_another_folder, too_old, without_pip])
def test_an_environment_that_cannot_be_used_is_made_anew_in_a_sentence(project, spoil):
    assert project.set_up().returncode == 0
    left = project.python.parents[1] / "left behind"
    left.write_text("")
    spoil(project.python)
    result = project.set_up()
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("can't be used") == 1 and result.stdout.index("made anew") < result.stdout.index("Installing")
    assert project.version() and not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["PIP_USER", "pip.conf", "PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX"])
def test_the_environment_of_the_shell_does_not_leak_in(without_tiny, tmp_path, variable):
    shell = {variable: str(tmp_path)}
    if variable == "PIP_USER":
        shell = {"PIP_USER": "1"}
    elif variable == "pip.conf":
        (tmp_path / "pip.conf").write_text("[install]\nuser = true\n")
        shell = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    elif variable == "PYTHONPATH":  # what lies there would be "already satisfied"
        zipfile.ZipFile(max(without_tiny.root.glob("tiny-*.whl"))).extractall(tmp_path)
    result = without_tiny.set_up(shell)
    assert result.returncode == 0 and without_tiny.version(), result.stderr
    assert "made anew" not in result.stdout and variable not in result.stdout.split()


@pytest.mark.slow
def test_a_pip_that_is_sent_elsewhere_is_said(without_tiny, tmp_path):
    (tmp_path / "pip.conf").write_text(f"[install]\ntarget = {tmp_path / 'elsewhere'}\n")
    result = without_tiny.set_up({"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")})
    assert result.returncode == 1 and "pip did not install into" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_failed_installation_ends_with_its_status_and_is_tried_again(without_tiny, tmp_path):
    result = without_tiny.set_up({"PIP_FIND_LINKS": str(tmp_path)})
    assert result.returncode == 1 and "No matching distribution found for tiny" in result.stderr
    assert without_tiny.set_up().returncode == 0 and without_tiny.version()


def python_3(minor):
    """The command of a Python 3.<minor>, where there is one."""
    places = [*Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"), shutil.which(f"python3.{minor}")]
    return next((place for place in places if place and subprocess.run([place, "-c", ""]).returncode == 0), None)


@pytest.mark.parametrize("minor", range(6, 11))
def test_an_old_python_is_refused_in_a_sentence(project, tmp_path, minor):
    script = tmp_path / "notebooks" / "run.py"
    script.parent.mkdir()
    ast.parse(shutil.copy(run.__file__, script).read_text(), feature_version=(3, minor))
    if not (old := python_3(minor)):
        pytest.skip(f"no Python 3.{minor} here")
    result = subprocess.run([old, script, "test"], capture_output=True, text=True)
    assert re.fullmatch(rf"Python 3\.11 or newer is needed; this is 3\.{minor}\.\d+\.\n", result.stderr)
    assert result.returncode == 1 and not (tmp_path / ".venv").exists()


def test_uv_is_told_which_python_is_needed():
    """As PEP 723 has it, which `uv run` reads."""
    head = re.match(r"# /// script\n(.*?)# ///\n", Path(run.__file__).read_text(), re.DOTALL)[1]
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tomllib.loads(re.sub("^# ", "", head, flags=re.MULTILINE)) == {"requires-python": needed}


def test_the_words_reach_the_environment_or_pytest(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(run, "VENV", tmp_path)
    monkeypatch.setattr(run, "set_up", lambda requirements: requirements)
    monkeypatch.setattr(run, "call", lambda *command: calls.append(command) or 5)
    assert run.main(["test", "-k", "fisher"]) == run.main(["lab", "--port=8899"]) == run.main(["03", "forget=[3, 8]"]) == 5
    workers = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile")
    assert calls == [("requirements-dev.txt", "-m", "pytest", *workers, "-k", "fisher"),
                     ("requirements.txt", "-m", "jupyterlab", REPOSITORY / "notebooks", "--port=8899"),
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
                            preexec_fn=None if os.name == "nt" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    return start


@pytest.mark.slow
@pytest.mark.parametrize(("source", "status", "printed", "complained"), [
    ("print('as it goes')", 0, "as it goes", ""),
    ("raise ValueError('forget=[]: nothing')", 1, "1_cell", "1_cell.ipynb stopped: ValueError: forget=[]: nothing\n")])
def test_the_exit_status_says_how_it_went(started, tmp_path, source, status, printed, complained):
    process = started(source)
    out, err = process.communicate()
    assert process.returncode == status and printed in out and complained in err
    assert (tmp_path / "executed" / "1_cell.ipynb").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal for a group of processes")
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
