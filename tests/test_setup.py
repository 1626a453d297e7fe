"""The setup cell, wherever a notebook may be opened. Colab is emulated: a stand-in google.colab, a folder for /content.

Everything here runs in the Python that runs pytest; `.ci/run` does it in an environment of Colab's own versions.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time

import imageio.v3 as imageio
import nbformat
import psutil
import pytest
import torch
from conftest import REPOSITORY

CELLS = nbformat.read(REPOSITORY / "notebooks" / "04_sample.ipynb", as_version=4).cells
STUDIES = sorted((REPOSITORY / "notebooks" / "studies").glob("[0-9]*.ipynb"))
SETUP = next(cell.source for cell in CELLS if cell.source.startswith("# Setup"))


def run_setup(cwd, content="/content", colab=None, repo_url="", use_drive=True, before=""):
    """Runs the cell twice in a fresh Python; returns what it printed, and the root it found as the last line."""
    cell = SETUP.replace("/content", str(content))
    code = f"use_drive, REPO_URL = {use_drive}, {repo_url!r}\n{before}\n{cell}\n{cell}\n"
    code += "print(*(path for path in sys.path if path.startswith(str(root / 'notebooks'))))\nprint(root)"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(colab or ""), "GIT_TERMINAL_PROMPT": "0"})


def found(result, root):
    """Did the cell find this root, make its two folders importable, and each once?"""
    return result.stdout.splitlines()[-2:] == [f"{root}/notebooks {root}/notebooks/studies", str(root)]


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
    (folder / "notebooks" / "amnesia" / "__init__.py").write_text("")
    return folder


def serve(folder):
    """Makes the folder a git repository and returns its address."""
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return f"file://{folder}"


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/studies"])
def test_root_and_its_folders(place):
    result = run_setup(REPOSITORY / place)
    assert found(result, REPOSITORY), result.stderr


@pytest.mark.parametrize("place", ["MyDrive/selective-amnesia", "MyDrive/my copy [2]", "MyDrive/Colab Notebooks/amnesia",
                                   "Shareddrives/our lab/selective-amnesia"])
def test_colab_finds_the_project_on_drive(colab, tmp_path, place):
    """In its own folder, under another name, or on a shared drive."""
    content = tmp_path / "content"
    root = project(content / "drive" / place)
    result = run_setup(content, content, colab)
    assert "Mounted at" in result.stdout and found(result, root), result.stderr


def test_colab_takes_the_folder_of_the_right_name_before_any_other(colab, tmp_path):
    drive = tmp_path / "content" / "drive" / "MyDrive"
    for name in ("a copy", "selective-amnesia", "zzz"):
        project(drive / name)
    assert found(run_setup(tmp_path / "content", tmp_path / "content", colab), drive / "selective-amnesia")


def test_colab_without_drive_uses_the_working_folder(colab, tmp_path, monkeypatch):
    content = tmp_path / "content"
    root = project(content / "selective-amnesia")
    result = run_setup(content, content, colab, use_drive=False)
    assert "Mounted" not in result.stdout and found(result, root), result.stderr
    monkeypatch.setenv("REFUSE", "1")
    result = run_setup(content, content, colab)
    assert "do not survive a disconnect" in result.stdout and found(result, root)


def test_a_working_folder_that_is_gone_is_no_obstacle(colab, tmp_path):
    content = tmp_path / "content"
    gone = content / "gone"
    gone.mkdir()
    root = project(content / "drive" / "MyDrive" / "selective-amnesia")
    result = run_setup(gone, content, colab, before=f"import os; os.rmdir({str(gone)!r})")
    assert found(result, root), result.stderr


def test_colab_clones_the_address_it_is_given(colab, tmp_path):
    """Once, although the cell is run twice, and although a clone was cut off before."""
    content, address = tmp_path / "content", serve(project(tmp_path / "source"))
    project(content / "selective-amnesia.part")
    result = run_setup(content, content, colab, repo_url=address)
    assert found(result, content / "selective-amnesia"), result.stderr
    assert result.stderr.count("Cloning into") == 1 and not (content / "selective-amnesia.part").exists()


def test_a_clone_that_was_cut_off_is_not_taken_for_the_project(colab, tmp_path):
    """A stand-in for git that dies in the middle of its work, first; then the real one, in the same kernel."""
    content, address = tmp_path / "content", serve(project(tmp_path / "source"))
    cut_off = ("import subprocess\nfrom pathlib import Path\nreal = subprocess.run\n"
               "def half(command, **options):\n    subprocess.run = real\n"
               "    (Path(command[-1]) / 'notebooks' / 'amnesia').mkdir(parents=True)\n    raise KeyboardInterrupt\n"
               "subprocess.run = half\ntry:\n" + "\n".join(f"    {line}" for line in SETUP.splitlines())
               + "\nexcept KeyboardInterrupt: print('cut off')\n").replace("/content", str(content))
    result = run_setup(content, content, colab, repo_url=address, before=cut_off)
    assert "cut off" in result.stdout and found(result, content / "selective-amnesia"), result.stderr


@pytest.mark.parametrize("address", ["", "file:///nowhere", "another project"])
@pytest.mark.parametrize("use_drive", [True, False])
def test_nowhere_to_be_found(colab, tmp_path, address, use_drive):
    """As after "Open in Colab": an empty Drive, no address or a wrong one. One sentence says what to do, each time."""
    if address == "another project":
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "README.md").write_text("Something else")
        address = serve(tmp_path / "source")
    twice = ("try:\n" + "\n".join(f"    {line}" for line in SETUP.splitlines())
             + "\nexcept FileNotFoundError as error: print('FIRST', error)\n").replace("/content", str(tmp_path / "content"))
    result = run_setup(tmp_path / "content", tmp_path / "content", colab, address, use_drive, before=twice)
    sentence = result.stderr.splitlines()[-1].removeprefix("FileNotFoundError: ")
    assert f"FIRST {sentence}" in result.stdout.splitlines(), result.stderr
    assert re.search(rf"REPO_URL={address!r}\. Put that folder on My Drive .* and run this cell again\.$", sentence)


def test_colab_installs_only_what_is_missing(colab, tmp_path):
    content = tmp_path / "content"
    project(content / "selective-amnesia")
    for missing in (None, "imageio"):
        (colab / "sitecustomize.py").write_text(
            "import importlib.util as u, subprocess as s\n"
            "real, s.run = u.find_spec, lambda command, **kwargs: print('RAN', *command[1:])\n"
            f"u.find_spec = lambda name, *rest: None if name == {missing!r} else object()\n")
        ran = [line for line in run_setup(content, content, colab).stdout.splitlines() if line.startswith("RAN")]
        assert set(ran) == ({f"RAN -m pip install {missing}"} if missing else set())


def test_what_colab_lacks_is_looked_for_by_the_names_of_the_requirements():
    """All that the notebooks and studies import, and no torch, which is Colab's own affair."""
    listed = (REPOSITORY / "requirements.txt").read_text().split("# What it takes to run them")[0]
    names = {line.split(">")[0] for line in listed.splitlines() if not line.startswith("#")}
    names -= {"torch", "torchvision", "numpy", "scikit-learn"}  # the last is Colab's too, and imported by another name
    assert names <= set(re.findall(r'"(\w+)"', SETUP.partition("needed =")[2]))


@pytest.fixture
def session(colab, tmp_path, monkeypatch):
    """session(notebook, **parameters): a command that runs a notebook, opened alone, on a new emulated Colab machine.

    A new machine has nothing but the stand-in google.colab. What lies on the emulated Drive, a folder that drive.mount
    links to, is all that outlives it; the notebook fetches the project from an address, and saves every second here.
    `session.source` is that project, a copy to be changed before the first notebook.
    """
    content, cloud, source = (tmp_path / name for name in ("content", "cloud", "source"))
    executed = tmp_path / "executed.ipynb"
    cloud.mkdir()
    shutil.copytree(REPOSITORY / "notebooks", source / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (source / "notebooks").rglob("*.*"):
        path.write_text(path.read_text().replace("/content", str(content)))
    often = "\n\nSAVE_SECONDS = SAVE_SECONDS_ON_DRIVE = 1\n"
    (source / "notebooks" / "amnesia" / "workspace.py").open("a").write(often)
    (colab / "google" / "colab" / "drive.py").write_text(
        f"from pathlib import Path\ndef mount(path):\n    Path(path).mkdir(exist_ok=True)\n"
        f"    if not (Path(path) / 'MyDrive').exists(): (Path(path) / 'MyDrive').symlink_to({str(cloud)!r})\n")
    (colab / "sitecustomize.py").write_text(  # an installation would end the notebook
        "import subprocess as s\nreal = s.run\ndef run(command, **options):\n"
        "    assert 'pip' not in command, 'nothing is missing'\n    return real(command, **options)\ns.run = run\n")
    monkeypatch.setenv("PYTHONPATH", str(colab))
    monkeypatch.delenv("AMNESIA_WORKSPACE", raising=False)

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


def test_emulated_colab_disconnects_within_a_stage_and_goes_on_from_drive(session, digits, tmp_path):
    """Emulated: kill -9 to the notebook in the middle of 01 and a new machine; all that is left is the Drive."""
    drive = tmp_path / "cloud" / "selective-amnesia"
    command = session("01_train_cvae.ipynb", steps=1000, batch_size=64)
    victim = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (drive / "checkpoints" / "cvae.unfinished.pt").exists():
        assert victim.poll() is None, "the notebook ended before any progress was saved"
        time.sleep(0.1)
    for process in [*victim.children(recursive=True), victim]:
        process.kill()
    victim.wait()
    assert not (drive / "checkpoints" / "cvae.pt").exists()
    printed = run_session(session("01_train_cvae.ipynb", steps=1000, batch_size=64))
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


def shown(command):
    """Runs to the end; returns {the text for screen readers: a picture's number of frames}."""
    pictures = [output for output in outputs(command) if "image/png" in output.get("data", {})]
    contents = [base64.b64decode(output["data"]["image/png"]) for output in pictures]
    return {output["metadata"]["image/png"]["alt"]: len(imageio.imread(content, index=None)) if content[:3] == b"GIF" else 1
            for output, content in zip(pictures, contents, strict=True)}


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
