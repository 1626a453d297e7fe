"""The setup cell, wherever a notebook may be opened. Colab is emulated: a stand-in google.colab, a folder for /content."""

import os
import shutil
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
import torch
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


def serve(folder):
    """Makes the folder a git repository and returns its address."""
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return f"file://{folder}"


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
    result = run_setup(content, content, colab, repo_url=serve(source))
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
        assert set(ran) == ({f"RAN -m pip install {missing}"} if missing else set())


@pytest.fixture
def session(colab, tmp_path, monkeypatch):
    """session(notebook, **parameters): a command that runs a notebook, opened alone, on a new emulated Colab machine.

    A new machine has nothing but the stand-in google.colab. What lies on the emulated Drive, a folder that drive.mount
    links to, is all that outlives it; the notebook fetches the project from an address, and saves every second here.
    """
    content, cloud, source = (tmp_path / name for name in ("content", "cloud", "source"))
    cloud.mkdir()
    shutil.copytree(REPOSITORY / "notebooks", source / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (source / "notebooks").rglob("*.*"):
        path.write_text(path.read_text().replace("/content", str(content)).replace("SAVE_SECONDS = 8", "SAVE_SECONDS = 1"))
    (colab / "google" / "colab" / "drive.py").write_text(
        f"from pathlib import Path\ndef mount(path):\n    Path(path).mkdir(exist_ok=True)\n"
        f"    if not (Path(path) / 'MyDrive').exists(): (Path(path) / 'MyDrive').symlink_to({str(cloud)!r})\n")
    (colab / "sitecustomize.py").write_text(  # an installation would end the notebook
        "import subprocess as s\nreal = s.run\ndef run(command, **options):\n"
        "    assert 'pip' not in command, 'nothing is missing'\n    return real(command, **options)\ns.run = run\n")
    address = serve(source)
    monkeypatch.setenv("PYTHONPATH", str(colab))
    monkeypatch.delenv("AMNESIA_WORKSPACE", raising=False)

    def command(notebook, **parameters):
        shutil.rmtree(content)
        content.mkdir()
        path = tmp_path / notebook
        shutil.copy(source / "notebooks" / notebook, path)
        chosen = [word for item in {"REPO_URL": address, "device": "cpu", **parameters}.items()
                  for word in ("-p", item[0], str(item[1]))]
        return ["papermill", "--cwd", content, "--no-progress-bar", *chosen, path, path.with_suffix(".executed.ipynb")]

    return command


def run_session(command):
    """Runs to the end; returns all that the notebook printed."""
    subprocess.run(command, check=True, capture_output=True, text=True)
    cells = nbformat.read(command[-1], as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_emulated_colab_disconnects_within_a_stage_and_goes_on_from_drive(session, digits, tmp_path):
    """Emulated: kill -9 to the notebook in the middle of 01 and a new machine; all that is left is the Drive."""
    drive = tmp_path / "cloud" / "selective-amnesia"
    command = session("01_train_cvae.ipynb", steps=3000, batch_size=16)
    victim = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (drive / "checkpoints" / "cvae.unfinished.pt").exists():
        assert victim.poll() is None, "the notebook ended before any progress was saved"
        time.sleep(0.1)
    for process in [*victim.children(recursive=True), victim]:
        process.kill()
    victim.wait()
    assert not (drive / "checkpoints" / "cvae.pt").exists()
    printed = run_session(session("01_train_cvae.ipynb", steps=3000, batch_size=16))
    assert "Going on from step" in printed and [path.name for path in (drive / "checkpoints").iterdir()] == ["cvae.pt"]


def test_emulated_colab_disconnects_between_stages_and_finds_its_files_on_drive(session, digits, tmp_path):
    """Emulated: each notebook on a new machine, opened alone; it reads the files that the others left on Drive."""
    drive = tmp_path / "cloud" / "selective-amnesia"
    budgets = {"01_train_cvae": {"steps": 30}, "02_compute_fim": {"n_samples": 500}, "03_forget": {"steps": 10},
               "04_sample": {"n_per_class": 20}, "05_evaluate": {}}
    shutil.copytree(REPOSITORY / "checkpoints" / "released", drive / "checkpoints", ignore=lambda folder, names:
                    set(names) - {"classifier.pt"})
    for notebook, budget in budgets.items():
        printed = run_session(session(f"{notebook}.ipynb", **budget))
        assert "released" not in printed, printed
    lineage = torch.load(drive / "checkpoints" / "samples-0.pt", weights_only=True)["lineage"]
    assert lineage.keys() == {"cvae.pt", "amnesiac-0.pt"}
    assert {path.name for path in (drive / "figures").iterdir()} == {
        "cvae_training.gif", "forgetting-0.gif", "comparison-0.png"}
