"""The set-up cell, wherever a notebook may be opened. Colab is emulated: a stand-in google.colab, a folder for /content.

Everything here runs in the Python that runs pytest; `.ci/run` does it in an environment of Colab's own versions.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import PIL.Image
import psutil
import pytest
import torch
from conftest import REPOSITORY

FIVE = sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))
STUDIES = sorted((REPOSITORY / "notebooks" / "studies").glob("[0-9]*.ipynb"))


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


SETUP = code_cells(FIVE[0])[1].source


def emulated(text, content):
    """The same code where these folders stand for /content, and none beside them or theirs for /kaggle."""
    return text.replace("/content", str(content)).replace("/kaggle", str(Path(content).parent / "kaggle"))


@pytest.fixture
def world(tmp_path):
    """world.colab(): a stand-in for google.colab, whose drive.mount runs this code. world.project(folder): a folder that
    looks like the project. world.open(folder, …): runs the cell twice there, in a fresh Python, and returns the process; its
    last line is where `amnesia` would be imported from."""
    class World:
        content, packages = tmp_path / "content", tmp_path / "packages"

        def colab(self, mount="(Path(path) / 'MyDrive').mkdir(parents=True, exist_ok=True); print('Mounted')"):
            package = self.packages / "google" / "colab"
            package.mkdir(parents=True)
            self.content.mkdir(exist_ok=True)
            for folder in (package.parent, package):
                (folder / "__init__.py").write_text("")
            (package / "drive.py").write_text(f"from pathlib import Path\ndef mount(path):\n    {mount}\n")
            (self.packages / "sitecustomize.py").write_text(  # a Drive with a folder in it counts as mounted
                "import os\nreal_ismount = os.path.ismount\nos.path.ismount = lambda path: "
                "os.path.isdir(os.path.join(path, 'MyDrive')) or real_ismount(path)\n")

        def project(self, folder):
            (folder / "notebooks" / "amnesia").mkdir(parents=True)
            (folder / "notebooks" / "amnesia" / "__init__.py").write_text("")
            return folder

        def open(self, folder, use_drive=True, repo_url="", after=""):
            cell = emulated(SETUP, self.content)
            code = (f"import importlib.util\nuse_drive, REPO_URL = {use_drive}, {repo_url!r}\n"
                    f"{cell}\n{cell}\n{after}\nprint(importlib.util.find_spec('amnesia').origin)")
            return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False,
                                  env={**os.environ, "PYTHONPATH": str(self.packages), "GIT_TERMINAL_PROMPT": "0"})

    return World()


def found(result, root):
    """Did the cell make the helper of this root importable, and its folders each once?"""
    last = result.stdout.splitlines()[-1:]
    return last and last[0] == f"{root}/notebooks/amnesia/__init__.py"


def serve(folder):
    """Makes the folder a git repository and returns its address."""
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return f"file://{folder}"


def test_the_setup_cell_is_the_same_everywhere_short_and_folded_and_a_lesson_begins_soon():
    cells = [code_cells(path)[1] for path in [*FIVE, *STUDIES]]
    assert {cell.source for cell in cells} == {SETUP} and SETUP.startswith("#@title") and len(SETUP.splitlines()) <= 8
    assert all(cell.metadata["cellView"] == "form" and cell.metadata["jupyter"]["source_hidden"] for cell in cells)
    assert not any(cell.outputs for cell in cells)
    for path in FIVE:
        assert sum(len(cell.source.splitlines()) for cell in code_cells(path)[:3]) <= 32, path


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/studies"])
def test_a_clone_is_found_from_its_root_and_its_folders(world, place):
    result = world.open(REPOSITORY / place)
    assert found(result, REPOSITORY), result.stderr


@pytest.mark.parametrize("place", ["MyDrive/selective-amnesia", "MyDrive/my copy", "Shareddrives/our lab/selective-amnesia"])
def test_colab_finds_the_project_on_drive(world, place):
    """In its own folder, and that before a copy; under another name, or on a shared drive."""
    world.colab()
    root = world.project(world.content / "drive" / place)
    if root.name == "selective-amnesia" and "MyDrive" in place:
        world.project(root.with_name("a copy"))
    result = world.open(world.content)
    assert "Mounted" in result.stdout and found(result, root), result.stderr


def test_colab_with_a_refused_drive_uses_the_disk_of_the_machine(world):
    world.colab("raise ValueError('mount failed')")
    result = world.open(world.content, after="", use_drive=True)
    assert "put its folder on My Drive, or its address in REPO_URL" in result.stderr         # nor is the project there
    root = world.project(world.content / "selective-amnesia")
    assert found(world.open(world.content), root)


def test_an_address_is_fetched_once_beside_the_notebook(world, tmp_path):
    world.content.mkdir()
    address = serve(world.project(tmp_path / "source"))
    result = world.open(world.content, repo_url=address)
    assert found(result, world.content / "selective-amnesia"), result.stderr


@pytest.mark.slow
def test_kaggle_finds_a_data_set_and_writes_to_its_working_folder(world, tmp_path):
    """The real helper, in a data set. Kaggle's image is made from Colab's: to mount there would wait for a browser."""
    world.colab("import time; time.sleep(60)")
    root, working = tmp_path / "kaggle" / "input" / "selective-amnesia", tmp_path / "kaggle" / "working"
    shutil.copytree(REPOSITORY / "notebooks" / "amnesia", root / "notebooks" / "amnesia")
    for path in root.rglob("*.py"):
        path.write_text(emulated(path.read_text(), world.content))
    working.mkdir()
    result = world.open(working, after="from amnesia import Workspace\nprint('STATE', Workspace().folder)")
    assert found(result, root) and f"STATE {working}" in result.stdout, result.stderr


@pytest.fixture
def session(world, tmp_path, monkeypatch):
    """session(notebook, **parameters): a command that runs a notebook, opened alone, on a new emulated Colab machine.

    A new machine has nothing but the stand-in google.colab. What lies on the emulated Drive, a folder that drive.mount
    links to, is all that outlives it; the notebook fetches the project from an address, and saves every second here.
    `session.source` is that project, a copy to be changed before the first notebook.
    """
    content, (cloud, source) = world.content, (tmp_path / name for name in ("cloud", "source"))
    executed = tmp_path / "executed.ipynb"
    cloud.mkdir()
    shutil.copytree(REPOSITORY / "notebooks", source / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (source / "notebooks").rglob("*.*"):
        often = re.sub(r"60 if self.folder.is_relative_to\(DRIVE\) else 8", "1", path.read_text())
        path.write_text(emulated(often, content))
    world.colab("Path(path).mkdir(exist_ok=True); here = Path(path) / 'MyDrive'; "
                f"here.exists() or here.symlink_to({str(cloud)!r})")
    monkeypatch.setenv("PYTHONPATH", str(world.packages))

    def command(notebook, **parameters):
        address = f"file://{source}" if (source / ".git").exists() else serve(source)
        shutil.rmtree(content)
        content.mkdir()
        path = tmp_path / "opened.ipynb"
        shutil.copy(source / "notebooks" / notebook, path)
        chosen = json.dumps({"REPO_URL": address, "device": "cpu", **parameters})
        return [sys.executable, REPOSITORY / "tests" / "kernel.py", path, executed, content, chosen]

    command.source = source
    return command


def outputs(command):
    """Runs to the end; returns all outputs of the notebook."""
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, re.sub(r"\x1b.*?m", "", result.stderr)[-1500:]
    return [output for cell in nbformat.read(command[3], as_version=4).cells for output in cell.get("outputs", [])]


def run_session(command):
    """Runs to the end; returns all that the notebook printed."""
    return "".join(output.get("text", "") for output in outputs(command))


@pytest.mark.slow
def test_emulated_colab_disconnects_within_a_stage_and_goes_on_from_drive(session, digits, tmp_path):
    """Emulated: kill -9 to the notebook in the middle of 01 and a new machine; all that is left is the Drive."""
    drive = tmp_path / "cloud" / "selective-amnesia"
    command = session("01_train_cvae.ipynb", steps=1000, batch_size=64)
    victim = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((drive / "checkpoints").glob("cvae.*.unfinished.pt")):
        assert victim.poll() is None, "the notebook ended before any progress was saved"
        time.sleep(0.1)
    for process in [*victim.children(recursive=True), victim]:
        process.kill()
    victim.wait()
    assert not (drive / "checkpoints" / "cvae.pt").exists()
    printed = run_session(session("01_train_cvae.ipynb", steps=1000, batch_size=64))
    assert "Going on from step" in printed and not list((drive / "checkpoints").glob("*.unfinished.pt"))


@pytest.mark.slow
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
    assert {path.name for path in drive.iterdir()} <= {"checkpoints", "figures", "data"}    # state; the project is fetched
    lineage = torch.load(drive / "checkpoints" / "samples-0.pt", weights_only=True)["lineage"]
    assert lineage.keys() >= {"cvae.pt", "amnesiac-0.pt"}
    assert {path.name for path in (drive / "figures").iterdir()} == {
        "cvae_training.gif", "forgetting-0.gif", "strip-0.png", "comparison-0.png"}


def shown(command):
    """Runs to the end; returns {the text for screen readers: a picture's number of frames}."""
    pictures = [output for output in outputs(command) if "image/png" in output.get("data", {})]
    contents = [base64.b64decode(output["data"]["image/png"]) for output in pictures]
    return {output["metadata"]["image/png"]["alt"]: PIL.Image.open(io.BytesIO(content)).n_frames
            for output, content in zip(pictures, contents, strict=True)}


@pytest.mark.slow
@pytest.mark.colab
@pytest.mark.mnist
def test_emulated_colab_runs_the_five_at_their_defaults(session, tmp_path):
    shutil.copytree(REPOSITORY / "checkpoints" / "released", session.source / "checkpoints" / "released")
    frames = [shown(session(path.name)) for path in sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))]
    assert all(len(alt) > 20 for pictures in frames for alt in pictures)
    assert [max(pictures.values()) > 20 for pictures in frames] == [True, False, True, False, False]     # moving
    result = json.loads((tmp_path / "cloud" / "selective-amnesia" / "checkpoints" / "evaluation-0.json").read_text())
    after, grey = (block["forgotten_probability"] for block in (result["amnesiac"], result["reference"]["grey"]))
    assert abs(after - grey) < 0.02 < 0.95 < result["original"]["forgotten_probability"]


@pytest.mark.slow
@pytest.mark.colab
@pytest.mark.mnist
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_emulated_colab_runs_a_study(session, path):
    """With a hundredth of the steps in everything that is trained."""
    for kind in ("checkpoints", "figures"):
        shutil.copytree(REPOSITORY / kind / "released", session.source / kind / "released")
    with open(session.source / "notebooks" / "amnesia" / "training.py", "a") as training:
        training.write("\n\nwhole = fit\n\n\ndef fit(model, loss, *, steps, **options):\n"
                       "    return whole(model, loss, steps=max(1, steps // 100), **options)\n")
    frames = shown(session(f"studies/{path.name}"))
    assert frames and all(len(alt) > 20 for alt in frames)
