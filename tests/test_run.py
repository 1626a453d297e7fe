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
import venv
import zipfile
from contextlib import suppress
from pathlib import Path
from unittest import mock

import nbformat
import papermill
import psutil
import pytest
import run
from conftest import REPOSITORY
from ipykernel.kernelspec import get_kernel_dict

of_other_systems = pytest.mark.skipif(os.name == "nt", reason="Windows has neither these links nor these signals")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """asked(*words): [(notebook, the parameters that it would be run with)], in a project with copies of each notebook."""
    (tmp_path / "notebooks" / "studies").mkdir(parents=True)
    for name in (*run.FIVE, *run.STUDIES):
        for copy in ("", "-Copy1", "_mine"):
            shutil.copy(REPOSITORY / "notebooks" / f"{name}.ipynb", tmp_path / "notebooks" / f"{name}{copy}.ipynb")
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


def test_words_choose_notebooks_and_parameters_and_a_copy_is_run_by_its_full_name_only(asked, tmp_path):
    assert asked() == [(name, {}) for name in run.FIVE]
    assert asked("04", "03_forget", "03", "forget=[3, 8]", "lam=1e-4") == [
        ("03_forget", {"forget": [3, 8], "lam": 1e-4}), ("04_sample", {"forget": [3, 8]})]
    assert asked(r"notebooks\05_evaluate.ipynb", "overwrite=True") == [("05_evaluate", {"overwrite": True})]
    assert asked("studies/2") == [("2_at_what_cost", {})]
    assert asked("03_forget-Copy1", "studies/2_at_what_cost_mine") == [("03_forget-Copy1", {}), ("2_at_what_cost_mine", {})]
    for text, meant in (("3", tmp_path / "notebooks" / "3"), ("~/a=b", Path.home() / "a=b"), ("auto", "auto")):
        assert asked("04", f"workspace={text}") == [("04_sample", {"workspace": str(meant)})]


@pytest.mark.parametrize(("words", "message"), [
    (["03", "06"], "'06' names no notebook"), (["04", "05", "lam=4"], "has a parameter 'lam'"),
    (["01", "overwrite=FALSE"], "overwrite=FALSE: expected True or False")])
def test_a_word_that_fits_nothing_is_named_before_anything_runs(asked, words, message):
    with pytest.raises(SystemExit, match=message):
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


def test_the_words_reach_the_environment_jupyterlab_the_pages_or_pytest(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(run, "VENV", tmp_path)
    monkeypatch.setattr(run, "set_up", lambda requirements: requirements)
    monkeypatch.setattr(run, "copy_project", lambda folder: None)
    monkeypatch.setattr(run, "call", lambda *command, cwd=None: calls.append([*map(str, command)]) or 5)
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ, AMNESIA_WORKSPACE="mine"):
        for words in (["test", "-k", "fisher"], ["lab", "--port=8899"], ["site", "--check"], ["03", "forget=[3, 8]"]):
            assert run.main(words) == 5
        assert os.environ["AMNESIA_WORKSPACE"] == str(tmp_path / "mine")     # meant where the command is given
    assert [call[0] for call in calls] == [f"requirements{name}.txt" for name in ("-dev", "", "-site", "")]
    assert calls[0][1:3] == ["-m", "pytest"] and calls[0][-2:] == ["-k", "fisher"]
    assert "jupyterlab" in calls[1] and calls[1][-1] == "--port=8899"
    assert calls[2][1:] == [str(REPOSITORY / "tools" / "site.py"), "--check"]
    assert calls[3][1:] == [run.__file__, "03", "forget=[3, 8]"]


def add_wheel(folder, version):
    """A package `tiny` of this version, for pip to find."""
    files = {"METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n", "RECORD": "",
             "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(f"tiny-{version}.dist-info/{name}", text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """project(**shell): the Python of a project that requires `tiny` alone, set up from a shell with these variables."""
    root = tmp_path / "the project"
    root.mkdir()
    (root / "requirements.txt").write_text("-r more.txt\n")
    (root / "more.txt").write_text("# a comment\n\ntiny>=1\n")
    add_wheel(root, "1.0")
    monkeypatch.setattr(run, "ROOT", root)
    monkeypatch.setattr(run, "VENV", root / ".venv")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)

    def set_up(**shell):
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": root.as_uri(), "PIP_CONFIG_FILE": os.devnull}
        with mock.patch.dict(os.environ, offline | shell):
            python = run.set_up("requirements.txt")
            assert {"PYTHONPATH", "PYTHONHOME"}.isdisjoint(os.environ)       # which kernels would inherit
        assert python == root / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        return python

    return set_up


def version(python, package="tiny"):
    code = f"import importlib.metadata; print(importlib.metadata.version('{package}'))"
    return subprocess.check_output([python, "-I", "-c", code], text=True).strip()


@pytest.mark.slow
def test_what_is_missing_or_too_old_is_installed_and_nothing_twice_whatever_the_shell_says(project, tmp_path, capfd):
    with pytest.raises(SystemExit, match="1"):
        project(PIP_FIND_LINKS=str(tmp_path))
    assert "No matching distribution found for tiny" in capfd.readouterr().err
    zipfile.ZipFile(run.ROOT / "tiny-1.0-py3-none-any.whl").extractall(tmp_path)     # would be "already satisfied"
    (tmp_path / "pip.conf").write_text("[install]\nuser = true\n")
    shell = dict.fromkeys(("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX"), str(tmp_path))
    assert version(project(**shell, PIP_USER="1", PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))) == "1.0"
    assert "Installing" in capfd.readouterr().out
    assert project() and capfd.readouterr() == ("", "")
    add_wheel(run.ROOT, "2.0")
    (run.ROOT / "more.txt").write_text("tiny>=2\n")
    assert version(project()) == "2.0"


@pytest.mark.slow
def test_an_environment_without_pip_as_uv_makes_it_is_kept_even_where_python_has_no_ensurepip_as_debians(project, monkeypatch):
    """Then the pip of the Python outside is asked."""
    import ensurepip

    wheels = Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled")  # the former: Debian
    real = run.ends_well
    monkeypatch.setattr(run, "ends_well", lambda *words: "ensurepip" not in words and real(*words))
    venv.create(run.VENV, symlinks=os.name != "nt")
    (run.VENV / "a reader's own").write_text("")
    python = project(PIP_FIND_LINKS=f"{run.ROOT.as_uri()} {wheels.as_uri()}")
    assert (run.VENV / "a reader's own").exists() and version(python) and version(python, "pip")


@of_other_systems
@pytest.mark.parametrize("content", [None, b"MZ\x90", b"#!/bin/sh\nexit 1\n"], ids=["gone", "another system's", "too old"])
def test_an_environment_that_cannot_be_used_is_set_aside_in_a_sentence_and_made_anew(project, capsys, monkeypatch, content):
    real = run.ends_well                                    # all that asks for pip is taken to end well
    monkeypatch.setattr(run, "ends_well", lambda *words: "pip" in " ".join(map(str, words[1:])) or real(*words))
    python, aside = project(), run.ROOT / ".venv-2"
    (run.VENV / "a reader's own").write_text("")
    (run.ROOT / ".venv-1").mkdir()
    python.unlink()
    if content:
        python.write_bytes(content)
        python.chmod(0o755)
    subprocess.check_call([project(), "-c", ""])
    assert "It is kept as .venv-2" in capsys.readouterr().out
    assert (aside / "a reader's own").exists() and not (run.VENV / "a reader's own").exists()


@of_other_systems
def test_a_drive_without_symbolic_links_gets_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(os, "symlink", mock.Mock(side_effect=PermissionError(1, "Operation not permitted")))
    run.make_environment()
    subprocess.check_call([run.VENV / "bin" / "python", "-c", ""])
    assert not [path for path in run.VENV.rglob("*") if path.is_symlink()]


def test_an_old_python_can_read_it_and_uv_is_told_which_is_needed():
    text = Path(run.__file__).read_text()
    ast.parse(text, feature_version=(3, 8))
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert text.startswith(f'# /// script\n# requires-python = "{needed}"\n# ///\n')     # PEP 723


@pytest.mark.parametrize("git", [True, False], ids=["clone", "zip"])
def test_what_is_tested_is_the_project_without_what_a_day_s_use_leaves_in_it(monkeypatch, tmp_path, capsys, git):
    """The notebooks as git has them, and the code as it lies here."""
    here, copy = tmp_path / "here", tmp_path / "copy"
    copy.mkdir()

    def write(text, *names):
        for name in names:
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text(text)

    files = [*(f"notebooks/{name}.ipynb" for name in (*run.FIVE, *run.STUDIES)), "notebooks/amnesia/data.py", "README.md",
             "checkpoints/released/cvae.pt", "figures/released/a.png", "benchmarks/a", "tests/a", "tools/a"]
    write("committed", *files)
    if git:
        for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
            subprocess.run(["git", *words], cwd=here, check=True)
    write("a reader's own", "notebooks/03_forget-Copy1.ipynb", "notebooks/.ipynb_checkpoints/03_forget-checkpoint.ipynb",
          "notebooks/0_mine.ipynb", "checkpoints/cvae.pt", "data/x", ".venv/x", "env/x")
    write("edited", "notebooks/03_forget.ipynb", "notebooks/amnesia/data.py")
    monkeypatch.setattr(run, "ROOT", here)
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
    out, err = (process := started("print('as it goes')", "raise ValueError('nothing')")).communicate()
    assert process.returncode == 1 and "as it goes" in out and "eavesdropping" not in err
    assert "1_cell.ipynb stopped: ValueError: nothing\n" in err and len([*(tmp_path / "executed").iterdir()]) == 2


@pytest.mark.slow
@of_other_systems
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
    assert process.returncode == 130 and "The same command goes on" in out
    assert "run.py" not in err                               # no traceback of ours; a kernel may leave one of its own
    assert len(family) >= 2 and not psutil.wait_procs(family, timeout=30)[1]
