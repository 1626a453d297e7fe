"""The setup cell, wherever a notebook may be opened. Colab is emulated: a stand-in google.colab, a folder for /content."""

import os
import subprocess
import sys

import nbformat
import pytest
from conftest import REPOSITORY

CELLS = nbformat.read(REPOSITORY / "notebooks" / "04_sample.ipynb", as_version=4).cells
SETUP = next(cell.source for cell in CELLS if cell.source.startswith("# Setup"))


def run_setup(cwd, content="/content", colab=None, repo_url="", use_drive=True):
    """Runs the cell twice in a fresh Python; returns what it printed, and the root it found as the last line."""
    path = [str(colab)] if colab else []
    code = f"use_drive, REPO_URL = {use_drive}, {repo_url!r}\n" + 2 * (SETUP.replace("/content", str(content)) + "\n")
    code += "print(sum(p == str(root / 'notebooks') for p in sys.path), 'entry'); print(root)"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(path)})


@pytest.fixture
def colab(tmp_path):
    """A stand-in for google.colab; its drive.mount makes the folder, or fails if REFUSE is set."""
    package = tmp_path / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "drive.py").write_text("import os\nfrom pathlib import Path\ndef mount(path):\n"
                                      "    if 'REFUSE' in os.environ: raise ValueError('mount failed')\n"
                                      "    (Path(path) / 'MyDrive').mkdir(parents=True, exist_ok=True)\n"
                                      "    print('Mounted at', path)\n")
    (tmp_path / "content").mkdir()
    return tmp_path / "packages"


def project(folder):
    """A folder that looks like the project."""
    (folder / "notebooks" / "amnesia").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("place", [".", "notebooks"])
def test_root_and_notebooks_folder(place):
    result = run_setup(REPOSITORY / place)
    assert result.stdout.splitlines()[-2:] == ["1 entry", str(REPOSITORY)], result.stderr


def test_colab_finds_the_project_on_drive(colab, tmp_path):
    content = tmp_path / "content"
    root = project(content / "drive" / "MyDrive" / "selective-amnesia")
    result = run_setup(content, content, colab)
    assert "Mounted at" in result.stdout and result.stdout.splitlines()[-2:] == ["1 entry", str(root)], result.stderr


def test_colab_without_drive_uses_the_working_folder(colab, tmp_path, monkeypatch):
    content = tmp_path / "content"
    root = project(content / "selective-amnesia")
    result = run_setup(content, content, colab, use_drive=False)
    assert "Mounted" not in result.stdout and result.stdout.splitlines()[-1] == str(root), result.stderr
    monkeypatch.setenv("REFUSE", "1")
    result = run_setup(content, content, colab)
    assert "do not survive a disconnect" in result.stdout and result.stdout.splitlines()[-1] == str(root)


def test_colab_clones_the_address_it_is_given(colab, tmp_path):
    content, source = tmp_path / "content", project(tmp_path / "source")
    (source / "notebooks" / "amnesia" / "__init__.py").write_text("")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    result = run_setup(content, content, colab, repo_url=f"file://{source}")
    assert result.stdout.splitlines()[-1] == str(content / "selective-amnesia"), result.stderr


def test_nowhere_to_be_found(colab, tmp_path):
    result = run_setup(tmp_path / "content", tmp_path / "content", colab)
    assert "FileNotFoundError: notebooks/amnesia is in none of" in result.stderr and "REPO_URL" in result.stderr


def test_colab_installs_only_what_is_missing(colab, tmp_path):
    content = tmp_path / "content"
    project(content / "selective-amnesia")
    for missing in (None, "imageio"):
        (colab / "sitecustomize.py").write_text(
            "import importlib.util as u, subprocess as s\n"
            "real, s.run = u.find_spec, lambda command, **kwargs: print('RAN', *command[1:])\n"
            f"u.find_spec = lambda name, *rest: None if name == {missing!r} else real(name, *rest)\n")
        ran = [line for line in run_setup(content, content, colab).stdout.splitlines() if line.startswith("RAN")]
        assert set(ran) == ({f"RAN -m pip install -q {missing}"} if missing else set())
