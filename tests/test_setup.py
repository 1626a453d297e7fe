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
# Of Colab; what lies on the Drive outlives the machine. Kaggle's image has it too, and there it would wait for a browser.
GOOGLE = """
from pathlib import Path
def mount(path):
    print("Mounted")
    Path(path).mkdir(exist_ok=True)
    (Path(path) / "MyDrive").symlink_to("/cloud")
"""
MOUNTED = """
import os
ismount = os.path.ismount
os.path.ismount = lambda path: os.path.isdir(os.path.join(path, "MyDrive")) or ismount(path)
"""


class World:
    """A machine where a notebook is opened; a folder stands for its /."""

    def __init__(self, root):
        self.root, self.content, self.drive = root, root / "content", root / "cloud" / "selective-amnesia"
        self.colab = root / "packages" / "google" / "colab"
        for folder in (self.content, self.drive.parent, self.colab):
            folder.mkdir(parents=True)
        self.write(self.colab / "drive.py", GOOGLE)
        self.write(root / "packages" / "sitecustomize.py", MOUNTED)
        self.env = {**os.environ, "PYTHONPATH": f"{root / 'packages'}{os.pathsep}{root / 'installed'}/notebooks"}

    def write(self, path, text):
        path.write_text(re.sub("/(?=content|kaggle|cloud)", f"{self.root}/", text))

    def project(self, place, *parts):
        """The helper, and these parts of the project, in a folder."""
        for part in ("notebooks/amnesia", *parts):
            shutil.copytree(REPOSITORY / part, self.root / place / part, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (self.root / place / "notebooks").rglob("*.*"):
            self.write(path, path.read_text())
        return self.root / place

    def open(self, folder, after=""):
        """Runs the cell twice in a fresh Python, prints where `amnesia` is then found, and goes on with this code."""
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.write(self.root / "cell.py", f"import importlib.util\nuse_drive, REPO_URL = True, ''\n{SETUP}\n{SETUP}\n"
                   f"print(importlib.util.find_spec('amnesia').origin)\n{after}")
        return subprocess.run([sys.executable, self.root / "cell.py"], cwd=self.root / folder, env=self.env,
                              capture_output=True, text=True, check=False)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_the_setup_cell_is_the_same_everywhere_short_and_folded_and_a_lesson_begins_soon():
    cells = [code_cells(path)[1] for path in [*FIVE, *STUDIES]]
    assert {cell.source for cell in cells} == {SETUP} and SETUP.startswith("#@title") and len(SETUP.splitlines()) <= 8
    assert all(cell.metadata["cellView"] == "form" and cell.metadata["jupyter"]["source_hidden"] for cell in cells)
    assert not any(cell.outputs for cell in cells)
    for path in FIVE:
        assert sum(len(cell.source.splitlines()) for cell in code_cells(path)[:3]) <= 32, path


@pytest.mark.parametrize(("lies", "opened", "keeps"), [
    ("clone", "clone", ""), ("clone", "clone/notebooks", ""), ("clone", "clone/notebooks/studies", ""),
    pytest.param("installed", "alone", "alone", marks=pytest.mark.slow),
    ("cloud/selective-amnesia", "content", ""), ("cloud/my copy", "content", ""),
    ("content/drive/Shareddrives/our lab/selective-amnesia", "content", ""),
    pytest.param("kaggle/input/selective-amnesia", "kaggle/working", "kaggle/working", marks=pytest.mark.slow)])
def test_the_project_is_found_and_files_are_kept_where_one_can_write(world, lies, opened, keeps):
    root = world.project(lies)
    if lies == "cloud/selective-amnesia":
        world.project("cloud/a copy")                       # which is not taken
    if "kaggle" in lies:
        (root / "checkpoints" / "released").mkdir(parents=True)
    if opened.startswith(("clone", "alone")):
        shutil.rmtree(world.colab)
    result = world.open(opened, after=keeps and "from amnesia import Workspace\nprint(Workspace().folder)")
    helper = f"{root}/notebooks/amnesia/__init__.py".replace("/cloud/", "/content/drive/MyDrive/")
    said = [*["Mounted"] * (opened == "content"), helper, *[f"{world.root}/{keeps}"] * bool(keeps)]
    assert [*dict.fromkeys(result.stdout.splitlines())] == said, result.stderr


def test_colab_with_a_refused_drive_uses_the_disk_of_the_machine(world):
    world.write(world.colab / "drive.py", "raise ValueError('mount failed')")
    assert "put its folder on My Drive, or its address in REPO_URL" in world.open("content").stderr    # nor is it there
    root = world.project("content/selective-amnesia")
    assert f"{root}/notebooks/amnesia/" in world.open("content").stdout


class Colab(World):
    """A notebook, opened alone, on a machine that is new each time: only the Drive outlives it. It fetches the project from
    an address, that of `source`, a copy to be changed before the first notebook."""

    def __init__(self, root):
        super().__init__(root)
        self.source = self.project("source", "notebooks/studies")
        for path in FIVE:
            self.write(self.source / "notebooks" / path.name, path.read_text())

    def command(self, notebook, **parameters):
        """Starts it, as a process."""
        for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
            subprocess.run(["git", *words], cwd=self.source, stdout=subprocess.DEVNULL)    # the last fails if nothing is new
        shutil.rmtree(self.content)
        self.content.mkdir()
        shutil.copy(self.source / "notebooks" / notebook, self.root / "opened.ipynb")
        chosen = json.dumps({"REPO_URL": f"file://{self.source}", "device": "cpu", **parameters})
        return psutil.Popen([sys.executable, REPOSITORY / "tests" / "kernel.py", "opened.ipynb", "executed.ipynb", self.content,
                             chosen], cwd=self.root, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def completed(self, notebook, **parameters):
        """What the notebook printed, and {a picture's text for screen readers: its number of frames}."""
        process = self.command(notebook, **parameters)
        _, said = process.communicate()
        assert process.returncode == 0, re.sub(r"\x1b.*?m", "", said)[-1500:]
        executed = nbformat.read(self.root / "executed.ipynb", as_version=4)
        outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
        assert "widget" not in str(outputs)                 # GitHub calls a notebook with one invalid
        pictures = {output["metadata"]["image/png"]["alt"]: output["data"]["image/png"] for output in outputs
                    if "image/png" in output.get("data", {})}
        assert all(len(alt) > 20 for alt in pictures)
        return "".join(output.get("text", "") for output in outputs), {
            alt: getattr(PIL.Image.open(io.BytesIO(base64.b64decode(png))), "n_frames", 1) for alt, png in pictures.items()}

    def helper(self, module, code):
        """Code at the end of the helper's module."""
        with (self.source / "notebooks" / "amnesia" / f"{module}.py").open("a") as file:
            file.write(code)


@pytest.fixture
def colab(tmp_path):
    return Colab(tmp_path)


# Enough to learn and to forget something, of 500 images
BUDGETS = {"01_train_cvae": {"steps": 300, "batch_size": 64}, "02_compute_fim": {"n_samples": 500},
           "03_forget": {"steps": 150, "batch_size": 64, "learning_rate": 2e-2, "lam": 0.01}, "04_sample": {"n_per_class": 50},
           "05_evaluate": {}}
SMALL = """
all_of_them = load_pictures
def load_pictures(*place):
    return [part.of(part.images[::len(part) // 500], part.labels[::len(part) // 500]) for part in all_of_them(*place)]
"""
OFTEN = f"""
import sys
sys.path.append({str(REPOSITORY / 'tests')!r})
from clock import tick
grow.__defaults__ = 1000,
tick(0.05)
"""


@pytest.mark.slow
def test_emulated_colab_disconnects_within_a_stage_and_between_all_and_the_five_make_what_they_say(colab):
    """Each notebook on a new machine, opened alone, 01 after a kill -9 in its middle; all that is left is the Drive. What they
    then hold: it learned, one label is forgotten and no other, and all of it is of one original."""
    folder = colab.drive / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "checkpoints" / "released" / "classifier.pt", folder)
    colab.helper("data", SMALL)
    colab.helper("__init__", OFTEN)

    victim = colab.command("01_train_cvae.ipynb", **BUDGETS["01_train_cvae"])
    while not list(folder.glob("cvae.*.unfinished.pt")):
        assert victim.poll() is None, victim.communicate()[1]
        time.sleep(0.05)
    for process in [*victim.children(recursive=True), victim]:
        process.kill()
    victim.communicate()
    assert not (folder / "cvae.pt").exists()
    printed, pictures = zip(*(colab.completed(f"{name}.ipynb", **budget) for name, budget in BUDGETS.items()), strict=True)

    assert "Going on from step" in printed[0] and not list(folder.glob("*.unfinished.pt"))
    assert "released" not in "".join(printed)
    assert {path.name for path in colab.drive.iterdir()} <= {"checkpoints", "figures", "data"}      # the project is fetched
    cvae, fim, amnesiac, samples = (torch.load(folder / f"{name}.pt", weights_only=True) for name in (
        "cvae", "fim-cvae", "amnesiac-0", "samples-0"))
    result = json.loads((folder / "evaluation-0.json").read_text())
    total = cvae["metrics"]["test_reconstruction"] + cvae["metrics"]["test_kl"]
    assert total[0] > 190 and total[-1] < 170                           # nats per image; 206.6 is the average image alone
    before, after = amnesiac["metrics"]["frames"][[0, -1]].float()
    assert after[0].std((1, 2)).mean() < 0.8 * before[0].std((1, 2)).mean()         # dissolving, and the others are not
    twins = samples["state"]["original"].int(), samples["state"]["amnesiac"].int()
    difference = (twins[0] - twins[1]).abs().float().mean((1, 2, 3))
    assert twins[0].shape == (10, 50, 28, 28) and difference[0] > difference[1:].max()
    assert result["amnesiac"]["forgotten_elbo"] < result["original"]["forgotten_elbo"]
    digest, = {file["lineage"]["cvae.pt"] for file in (fim, amnesiac, samples, result)}
    assert digest == hashlib.sha256((folder / "cvae.pt").read_bytes()).hexdigest() and digest[:12] in printed[-1]
    for path, shown in zip(FIVE, pictures, strict=True):    # a picture for each call, of which those of the runs move
        assert len(shown) == sum(len(re.findall(r"^ *show\(", cell.source, re.M)) for cell in code_cells(path)) > 0
        assert [frames > 20 for frames in shown.values()].count(True) == (path.stem in ("01_train_cvae", "03_forget"))
    assert {path.name for path in (colab.drive / "figures").iterdir()} == {
        "cvae_training.gif", "forgetting-0.gif", "strip-0.png", "comparison-0.png"}


@pytest.mark.slow
@pytest.mark.colab
@pytest.mark.mnist
@pytest.mark.parametrize("path", [None, *STUDIES], ids=lambda path: path.stem if path else "the five at their defaults")
def test_emulated_colab_runs_the_five_and_each_study_with_a_hundredth_of_the_training(colab, path):
    for kind in ("checkpoints", "figures"):
        shutil.copytree(REPOSITORY / kind / "released", colab.source / kind / "released")
    if path:
        colab.helper("training", "\n\nwhole = fit\n\n\ndef fit(model, loss, *, steps, **options):\n"
                                 "    return whole(model, loss, steps=max(1, steps // 100), **options)\n")
        assert colab.completed(f"studies/{path.name}")[1]
        return
    for lesson in FIVE:
        colab.completed(lesson.name)
    result = json.loads((colab.drive / "checkpoints" / "evaluation-0.json").read_text())
    after, grey = (block["forgotten_probability"] for block in (result["amnesiac"], result["reference"]["grey"]))
    assert abs(after - grey) < 0.02 < 0.95 < result["original"]["forgotten_probability"]
