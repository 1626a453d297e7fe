"""The set-up cell, wherever a notebook may be opened. Colab is emulated: a stand-in google.colab, a folder for /content.

Everything here runs in the Python that runs pytest; `.ci/run` does it in an environment of Colab's own versions.
"""

import base64
import hashlib
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


class World:
    """A machine where a notebook is opened: its /content, and the packages that are installed there."""

    def __init__(self, folder):
        self.content, self.packages = folder / "content", folder / "packages"
        self.content.mkdir()

    def colab(self, mount="(Path(path) / 'MyDrive').mkdir(parents=True, exist_ok=True); print('Mounted')"):
        """Installs a stand-in for google.colab, whose drive.mount runs this code."""
        package = self.packages / "google" / "colab"
        package.mkdir(parents=True)
        for folder in (package.parent, package):
            (folder / "__init__.py").touch()
        (package / "drive.py").write_text(f"from pathlib import Path\ndef mount(path):\n    {mount}\n")
        (self.packages / "sitecustomize.py").write_text(  # a Drive with a folder in it counts as mounted
            "import os\nreal_ismount = os.path.ismount\nos.path.ismount = lambda path: "
            "os.path.isdir(os.path.join(path, 'MyDrive')) or real_ismount(path)\n")

    def project(self, folder):
        """A folder that looks like the project."""
        (folder / "notebooks" / "amnesia").mkdir(parents=True)
        (folder / "notebooks" / "amnesia" / "__init__.py").touch()
        return folder

    def open(self, folder, repo_url="", after=""):
        """Runs the cell twice there, in a fresh Python. Its last line is where `amnesia` would be imported from."""
        cell = emulated(SETUP, self.content)
        code = (f"import importlib.util\nuse_drive, REPO_URL = True, {repo_url!r}\n"
                f"{cell}\n{cell}\n{after}\nprint(importlib.util.find_spec('amnesia').origin)")
        return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(self.packages), "GIT_TERMINAL_PROMPT": "0"})


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def found(result, root):
    """Did the cell make the helper of this root importable?"""
    return result.stdout.splitlines()[-1:] == [f"{root}/notebooks/amnesia/__init__.py"]


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
    result = world.open(world.content)
    assert "put its folder on My Drive, or its address in REPO_URL" in result.stderr         # nor is the project there
    root = world.project(world.content / "selective-amnesia")
    assert found(world.open(world.content), root)


def test_an_address_is_fetched_once_beside_the_notebook(world, tmp_path):
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
    links to, is all that outlives it; the notebook fetches the project from an address, and saves every moment here.
    `session.source` is that project, a copy to be changed before the first notebook; `session.drive` its folder on Drive.
    """
    content, (cloud, source) = world.content, (tmp_path / name for name in ("cloud", "source"))
    cloud.mkdir()
    shutil.copytree(REPOSITORY / "notebooks", source / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (source / "notebooks").rglob("*.*"):
        often = path.read_text().replace("60 if self.folder.is_relative_to(DRIVE) else 8", "0.3").replace(
            "now - looked < 1 ", "now - looked < 0.1 ")
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
        return [sys.executable, REPOSITORY / "tests" / "kernel.py", path, tmp_path / "executed.ipynb", content, chosen]

    command.source, command.drive = source, cloud / "selective-amnesia"
    return command


def completed(command):
    """Runs to the end. Returns what the notebook printed, and {a picture's text for screen readers: its number of frames}."""
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, re.sub(r"\x1b.*?m", "", result.stderr)[-1500:]
    outputs = [output for cell in nbformat.read(command[3], as_version=4).cells for output in cell.get("outputs", [])]
    assert "widget" not in str(outputs)                     # GitHub calls a notebook with one invalid
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    contents = [base64.b64decode(output["data"]["image/png"]) for output in pictures]
    return "".join(output.get("text", "") for output in outputs), {
        output["metadata"]["image/png"]["alt"]: getattr(PIL.Image.open(io.BytesIO(content)), "n_frames", 1)
        for output, content in zip(pictures, contents, strict=True)}


# Enough to learn and to forget something, of 500 images
BUDGETS = {"01_train_cvae": {"steps": 300, "batch_size": 64}, "02_compute_fim": {"n_samples": 500},
           "03_forget": {"steps": 150, "batch_size": 64, "learning_rate": 2e-2, "lam": 0.01}, "04_sample": {"n_per_class": 50},
           "05_evaluate": {}}
SMALL = """
all_of_them = load_pictures
def load_pictures(*place):
    return [part.of(part.images[::len(part) // 500], part.labels[::len(part) // 500]) for part in all_of_them(*place)]
"""


@pytest.mark.slow
def test_emulated_colab_disconnects_within_a_stage_and_between_all_and_the_five_make_what_they_say(session):
    """Emulated: each notebook on a new machine, opened alone, 01 after a kill -9 in its middle; all that is left is the Drive.

    What they then hold: it learned, one label is forgotten and no other, and all of it is of one original.
    """
    folder = session.drive / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "checkpoints" / "released" / "classifier.pt", folder)
    for name, more in (("data", SMALL), ("training", "grow.__defaults__ = (1000,)\n")):
        with (session.source / "notebooks" / "amnesia" / f"{name}.py").open("a") as file:
            file.write(more)

    victim = psutil.Popen(session("01_train_cvae.ipynb", **BUDGETS["01_train_cvae"]), stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL)
    while not list(folder.glob("cvae.*.unfinished.pt")):
        assert victim.poll() is None, "the notebook ended before any progress was saved"
        time.sleep(0.05)
    for process in [*victim.children(recursive=True), victim]:
        process.kill()
    victim.wait()
    assert not (folder / "cvae.pt").exists()
    printed, pictures = zip(*(completed(session(f"{name}.ipynb", **budget)) for name, budget in BUDGETS.items()), strict=True)

    assert "Going on from step" in printed[0] and not list(folder.glob("*.unfinished.pt"))
    assert "released" not in "".join(printed)
    assert {path.name for path in session.drive.iterdir()} <= {"checkpoints", "figures", "data"}    # the project is fetched
    cvae, fim, amnesiac, samples = (torch.load(folder / f"{name}.pt", weights_only=True) for name in (
        "cvae", "fim-cvae", "amnesiac-0", "samples-0"))
    result = json.loads((folder / "evaluation-0.json").read_text())
    total = cvae["metrics"]["test_reconstruction"] + cvae["metrics"]["test_kl"]
    assert total[0] > 190 and total[-1] < 170                           # nats per image; 206.6 is the average image alone
    assert {key: value.shape for key, value in fim["state"].items()} == {key: value.shape for key, value in cvae["state"].items()}
    history = amnesiac["metrics"]
    before, after = history["frames"][[0, -1]].float()
    assert after[0].std((1, 2)).mean() < 0.8 * before[0].std((1, 2)).mean()         # dissolving, and the others are not
    assert (after[1:] - before[1:]).abs().mean() < (after[0] - before[0]).abs().mean()
    assert history["P"].shape == history["H"].shape == history["snapshot_steps"].shape and history["P"][-1] < history["P"][0]
    twins = samples["state"]
    assert {key: (value.dtype, tuple(value.shape)) for key, value in twins.items()} == dict.fromkeys(
        ("original", "amnesiac"), (torch.uint8, (10, 50, 28, 28)))
    difference = (twins["original"].int() - twins["amnesiac"].int()).abs().float().mean((1, 2, 3))
    assert difference[0] > difference[1:].max()
    assert result["amnesiac"]["forgotten_elbo"] < result["original"]["forgotten_elbo"]
    assert {"real", "grey", "noise", "kept_frechet_floor"} <= result["reference"].keys()
    digest, = {file["lineage"]["cvae.pt"] for file in (fim, amnesiac, samples, result)}
    assert digest == hashlib.sha256((folder / "cvae.pt").read_bytes()).hexdigest() and digest[:12] in printed[-1]
    # a picture for each call, of which those of the runs move
    for path, shown in zip(FIVE, pictures, strict=True):
        assert len(shown) == sum(len(re.findall(r"^ *show\(", cell.source, re.M)) for cell in code_cells(path)) > 0
        assert [frames > 20 for frames in shown.values()].count(True) == (path.stem in ("01_train_cvae", "03_forget"))
    assert {path.name for path in (session.drive / "figures").iterdir()} == {
        "cvae_training.gif", "forgetting-0.gif", "strip-0.png", "comparison-0.png"}


@pytest.mark.slow
@pytest.mark.colab
@pytest.mark.mnist
def test_emulated_colab_runs_the_five_at_their_defaults(session):
    shutil.copytree(REPOSITORY / "checkpoints" / "released", session.source / "checkpoints" / "released")
    for path in FIVE:
        _, pictures = completed(session(path.name))
        assert all(len(alt) > 20 for alt in pictures)
        assert (max(pictures.values()) > 20) == (path.stem in ("01_train_cvae", "03_forget"))            # moving
    result = json.loads((session.drive / "checkpoints" / "evaluation-0.json").read_text())
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
    with (session.source / "notebooks" / "amnesia" / "training.py").open("a") as training:
        training.write("\n\nwhole = fit\n\n\ndef fit(model, loss, *, steps, **options):\n"
                       "    return whole(model, loss, steps=max(1, steps // 100), **options)\n")
    _, pictures = completed(session(f"studies/{path.name}"))
    assert pictures and all(len(alt) > 20 for alt in pictures)
