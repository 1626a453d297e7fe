"""notebooks/run.py: what its words ask for, the environment it makes, the copy that it tests, and how it ends.

What is installed here is a package of nothing; `.ci/run` starts with the real thing.
"""

import ast
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nbformat
import papermill
import psutil
import pytest
import run
from conftest import REPOSITORY
from ipykernel.kernelspec import get_kernel_dict


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """asked(*words): [(notebook, the parameters that it would be run with)], in a project with a reader's copies in it."""
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks", ignore=lambda folder, names: {
        name for name in names if not (name.endswith(".ipynb") or name == "studies")})
    studies = sorted((tmp_path / "notebooks" / "studies").glob("2_*.ipynb"))
    for path in (tmp_path / "notebooks" / "03_forget.ipynb", *studies):
        (path.parent / ".ipynb_checkpoints").mkdir()
        for copy in (f"{path.stem}-Copy1", f"{path.stem}_mine", f".ipynb_checkpoints/{path.stem}-checkpoint"):
            shutil.copy(path, path.parent / f"{copy}.ipynb")
    runs = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda path, copy, values, **_: runs.append((path.stem, values)))
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path / "notebooks")

    def ask(*words):
        runs.clear()
        assert run.run(words) == 0
        return runs

    ask.runs = runs
    return ask


def test_words_choose_notebooks_and_parameters_and_a_copy_is_run_by_its_full_name_only(asked):
    assert asked() == [(name, {}) for name in run.FIVE]
    assert asked("04", "03_forget", "03", "forget=[3, 8]", "lam=1e-4") == [
        ("03_forget", {"forget": [3, 8], "lam": 1e-4}), ("04_sample", {"forget": [3, 8]})]
    assert asked("notebooks/05_evaluate.ipynb", "overwrite=True") == [("05_evaluate", {"overwrite": True})]
    assert asked(r"notebooks\02_compute_fim.ipynb") == [("02_compute_fim", {})]
    [(study, _)] = asked("studies/2")
    assert study.startswith("2_") and "Copy" not in study and "mine" not in study
    assert asked("03_forget-Copy1", "03_forget_mine.ipynb") == [("03_forget-Copy1", {}), ("03_forget_mine", {})]
    assert asked(f"studies/{study}_mine") == [(f"{study}_mine", {})]
    nbformat.write(nbformat.v4.new_notebook(), "studies/2_mine.ipynb")
    with pytest.raises(SystemExit, match=rf"^'studies/2' names studies/{study} and studies/2_mine\. There are"):
        asked("studies/2")


@pytest.mark.parametrize(("words", "message"), [
    (["03", "06"], "'06' names no notebook. There are: 01_train_cvae, "), (["=3"], "of these has a parameter ''."),
    (["04", "05", "lam=4"], "No notebook of these has a parameter 'lam'. They have: "),
    (["01", "overwrite=FALSE"], "overwrite=FALSE: expected True or False."), (["04", "use_drive=1"], "use_drive=1: exp")])
def test_a_word_that_fits_nothing_is_named_before_anything_runs(asked, words, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        asked(*words)
    assert not asked.runs


def test_the_pages_commands_are_understood():
    pages = "".join((REPOSITORY / page).read_text() for page in ("README.md", "notebooks/README.md"))
    commands = [shlex.split(words) for words in re.findall(r"^python3 notebooks/run\.py(.*)$", pages, re.MULTILINE)]
    assert [] in commands and ["test"] in commands
    for words in commands:
        if words[:1] not in (["lab"], ["test"], ["site"]):
            notebooks, values = run.chosen(words)
            assert notebooks and len(values) == sum("=" in word for word in words)


def test_a_relative_folder_is_meant_where_the_command_is_given(asked, monkeypatch, tmp_path):
    notebooks = tmp_path / "notebooks"
    assert asked("04", "workspace=3") == [("04_sample", {"workspace": str(notebooks / "3")})]
    assert asked("04", "workspace=~/a=b") == [("04_sample", {"workspace": str(Path.home() / "a=b")})]
    assert asked("04", "workspace=auto") == [("04_sample", {"workspace": "auto"})]
    monkeypatch.setattr(run, "set_up", lambda requirements: requirements)
    monkeypatch.setattr(run, "call", lambda *command: os.environ["AMNESIA_WORKSPACE"])
    for given, meant in (("mine", str(notebooks / "mine")), ("", "")):
        monkeypatch.setenv("AMNESIA_WORKSPACE", given)
        assert run.main(["lab"]) == meant


def test_the_words_reach_the_environment_jupyterlab_the_pages_or_pytest(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(run, "VENV", tmp_path)
    monkeypatch.setattr(run, "set_up", lambda requirements: requirements)
    monkeypatch.setattr(run, "copy_project", lambda folder: None)
    monkeypatch.setattr(run, "call", lambda *command, cwd=None: calls.append([*map(str, command)]) or 5)
    with mock.patch.dict(os.environ):
        for words in (["test", "-k", "fisher"], ["lab", "--port=8899"], ["site", "--check"], ["03", "forget=[3, 8]"]):
            assert run.main(words) == 5
    assert [call[0] for call in calls] == [f"requirements{name}.txt" for name in ("-dev", "", "-site", "")]
    assert calls[0][1:3] == ["-m", "pytest"] and calls[0][-2:] == ["-k", "fisher"]
    assert "jupyterlab" in calls[1] and calls[1][-1] == "--port=8899"
    assert calls[2][1:] == [str(REPOSITORY / "tools" / "site.py"), "--check"]
    assert calls[3][1:] == [run.__file__, "03", "forget=[3, 8]"]
    with pytest.raises(SystemExit) as error:
        run.main(["--frobnicate"])
    assert error.value.code == 2


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
    """A project that requires `tiny` alone: project.set_up(shell, before) sets it up from a shell with these variables,
    after this code."""
    root = tmp_path_factory.mktemp("the project")
    (root / "notebooks").mkdir()
    shutil.copy(run.__file__, root / "notebooks")
    (root / "requirements.txt").write_text("# a comment\n\ntiny>=1\n")
    add_wheel(root, "1.0")
    python = root / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": root.as_uri(), "PIP_CONFIG_FILE": os.devnull}
    of_nobody = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}

    def set_up(shell=(), before=""):
        shell = {**offline, **dict(shell)}  # set inside, for a PYTHONHOME that leads nowhere stops this Python too
        code = (f"import os, run; os.environ.update({shell!r})\n{before}\nprint(run.set_up('requirements.txt'), "
                "*os.environ.keys() & {'PYTHONPATH', 'PYTHONHOME'})")  # which kernels would inherit
        return subprocess.run([sys.executable, "-c", code], cwd=root / "notebooks", env=of_nobody,
                              capture_output=True, text=True)

    def version(package="tiny"):
        """Of a package in the environment, "" if it is not there."""
        code = f"from importlib.metadata import version; print(version('{package}'))"
        return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True).stdout.strip()

    assert set_up().returncode == 0 and version() == "1.0"
    return SimpleNamespace(root=root, python=python, set_up=set_up, version=version)


@pytest.fixture
def without_tiny(project):
    """The project, whose package is to be installed."""
    for path in project.python.parents[1].glob("[Ll]ib/**/tiny*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not project.version()
    return project


@pytest.mark.slow
def test_what_is_missing_or_too_old_is_installed_and_nothing_twice(without_tiny, tmp_path):
    """After a failure too, which ends with its status."""
    failed = without_tiny.set_up({"PIP_FIND_LINKS": str(tmp_path)})
    assert failed.returncode == 1 and "No matching distribution found for tiny" in failed.stderr
    first, second = without_tiny.set_up(), without_tiny.set_up()
    assert "Installing" in first.stdout and without_tiny.version() == "1.0"
    assert second.stdout == f"{without_tiny.python}\n" and not second.stderr
    add_wheel(without_tiny.root, "2.0")
    (without_tiny.root / "requirements.txt").write_text("tiny>=2\n")
    assert without_tiny.set_up().returncode == 0 and without_tiny.version() == "2.0"


@pytest.mark.slow
def test_an_environment_without_pip_as_uv_makes_it_is_kept_with_all_that_is_in_it(project):
    """Even where Python has no ensurepip, as Debian's: then the pip of the Python outside is asked."""
    import ensurepip

    wheels = Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled")  # the former: Debian
    own = project.python.parents[1] / "a reader's own"
    own.write_text("")
    for path in project.python.parents[1].glob("[Ll]ib/**/site-packages/pip*"):
        shutil.rmtree(path)
    result = project.set_up({"PIP_FIND_LINKS": f"{project.root.as_uri()} {wheels.as_uri()}"},
                            "real = run.ends_well\nrun.ends_well = lambda *words: 'ensurepip' not in words and real(*words)")
    assert result.stdout == f"{project.python}\n" and not result.returncode, result.stderr
    assert own.exists() and project.version() and project.version("pip") and not list(project.root.glob(".venv-*"))


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """bare(): sets up a project in this process as far as its Python: all that asks for pip is taken to end well."""
    real = run.ends_well
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(run, "ends_well", lambda *words: "pip" in " ".join(map(str, words[1:])) or real(*words))
    (tmp_path / "requirements.txt").write_text("")

    def set_up():
        with mock.patch.dict(os.environ):
            python = run.set_up("requirements.txt")
        return python if real(python, "-c", "") else None

    return set_up


@pytest.mark.skipif(os.name == "nt", reason="the files are those of other systems")
@pytest.mark.parametrize("content", [b"", b"MZ\x90", b"#!/bin/sh\nexit 1\n"], ids=["gone", "another system's", "too old"])
def test_an_environment_that_cannot_be_used_is_set_aside_in_a_sentence_and_made_anew(bare, tmp_path, capsys, content):
    python = bare()
    (tmp_path / ".venv" / "a reader's own").write_text("")
    (tmp_path / ".venv-1").mkdir()
    python.unlink()
    if content:
        python.write_bytes(content)
        python.chmod(0o755)
    assert bare() == python
    assert "It is kept as .venv-2, and made anew." in capsys.readouterr().out
    assert (tmp_path / ".venv-2" / "a reader's own").exists() and not (tmp_path / ".venv" / "a reader's own").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has copies in any case")
def test_a_drive_without_symbolic_links_gets_copies(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "symlink", mock.Mock(side_effect=PermissionError(1, "Operation not permitted")))
    assert bare() and not [path for path in (tmp_path / ".venv").rglob("*") if path.is_symlink()]


def test_a_folder_that_no_environment_can_lie_in_is_said_with_the_remedy(bare, monkeypatch):
    monkeypatch.setattr(run, "VENV", Path(f"a{os.pathsep}b", ".venv"))
    with pytest.raises(SystemExit, match=r"has a '[:;]' in its name.*Rename that folder"):
        bare()


@pytest.mark.slow
def test_the_environment_of_the_shell_does_not_leak_in(without_tiny, tmp_path):
    zipfile.ZipFile(min(without_tiny.root.glob("tiny-*.whl"))).extractall(tmp_path)  # would be "already satisfied"
    (tmp_path / "pip.conf").write_text("[install]\nuser = true\n")
    shell = {name: str(tmp_path) for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX")}
    result = without_tiny.set_up({**shell, "PIP_USER": "1", "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")})
    assert result.returncode == 0 and without_tiny.version(), result.stderr
    assert result.stdout.splitlines()[-1] == str(without_tiny.python)


def test_an_old_python_can_read_it_and_uv_is_told_which_is_needed():
    """The latter by PEP 723, which `uv run` reads."""
    text = Path(run.__file__).read_text()
    ast.parse(text, feature_version=(3, 6))
    head = re.match(r"# /// script\n(.*?)# ///\n", text, re.DOTALL)[1]
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tomllib.loads(re.sub("^# ", "", head, flags=re.MULTILINE)) == {"requires-python": needed}


@pytest.mark.parametrize("git", [True, False], ids=["clone", "zip"])
def test_what_is_tested_is_the_project_without_what_a_day_s_use_leaves_in_it(monkeypatch, tmp_path, capsys, git):
    """The notebooks as git has them, and the code as it lies here."""
    here, copy = tmp_path / "here", tmp_path / "copy"
    files = [*(f"notebooks/{name}.ipynb" for name in run.FIVE), "notebooks/studies/1_one.ipynb", "notebooks/amnesia/data.py",
             "checkpoints/released/cvae.pt", "figures/released/a.png", *(f"{part}/a" for part in (
                 ".github", "benchmarks", "tests")), "README.md"]
    for name in files:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("committed")
    if git:
        for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
            subprocess.run(["git", *words], cwd=here, check=True)
    for name in ("notebooks/03_forget-Copy1.ipynb", "notebooks/.ipynb_checkpoints/03_forget-checkpoint.ipynb", "data/x",
                 "notebooks/studies/1_one-Copy1.ipynb", "notebooks/0_mine.ipynb", "checkpoints/cvae.pt", ".venv/x", "env/x"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("a reader's own")
    for name in ("03_forget.ipynb", "amnesia/data.py"):
        (here / "notebooks" / name).write_text("edited")
    monkeypatch.setattr(run, "ROOT", here)
    copy.mkdir()
    run.copy_project(copy)
    found = {path.relative_to(copy).as_posix(): path.read_text() for path in copy.rglob("*") if path.is_file()}
    assert found == {**dict.fromkeys(files, "committed"), "notebooks/amnesia/data.py": "edited",
                     "notebooks/03_forget.ipynb": "committed" if git else "edited"}
    assert capsys.readouterr().out.count("03_forget.ipynb is tested as git has it") == git


def test_opening_and_saving_a_notebook_in_jupyterlab_changes_nothing():
    """It writes the kernel as that is called where it is installed, and the file as nbformat does."""
    kernel = {"name": "python3", **{key: get_kernel_dict()[key] for key in ("display_name", "language")}}
    for path in (REPOSITORY / "notebooks").rglob("[0-9]*_*.ipynb"):
        notebook, saved = nbformat.read(path, as_version=4), io.StringIO()
        notebook.metadata["kernelspec"] = kernel
        nbformat.write(notebook, saved)
        assert saved.getvalue() == path.read_text(encoding="utf-8"), path


@pytest.fixture
def started(tmp_path):
    """started(*sources): the command as a terminal runs it, on a notebook of one cell for each, in a process group of its own."""
    def start(*sources):
        (tmp_path / "notebooks").mkdir()
        names = [f"{i}_cell" for i in range(len(sources))]
        for name, source in zip(names, sources, strict=True):
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
            nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
        inner = f"import run, sys; run.ROOT = run.Path({str(tmp_path)!r}); sys.exit(run.run({names}))"
        outer = f"import run, sys; sys.exit(run.call(sys.executable, '-c', {inner!r}))"
        return psutil.Popen([sys.executable, "-c", outer], env={**os.environ, "PYTHONPATH": str(REPOSITORY / "notebooks")},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                            # a shell's background job, as these tests may be, hands down that Ctrl-C is ignored
                            preexec_fn=None if os.name == "nt" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    return start


@pytest.mark.slow
def test_a_notebook_that_stops_is_said_after_one_that_went_well_and_nothing_of_eavesdroppers(started, tmp_path):
    process = started("print('as it goes'); import sys; sys.__stderr__.write('a warning')", "raise ValueError('nothing')")
    out, err = process.communicate()
    assert process.returncode == 1 and "as it goes" in out and "a warning" in err and "eavesdropping" not in err
    assert "1_cell.ipynb stopped: ValueError: nothing\nThe cell is" in err and "0_cell.ipynb stopped" not in err
    assert len([*(tmp_path / "executed").iterdir()]) == 2


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
