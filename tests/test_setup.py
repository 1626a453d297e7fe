"""The setup cell, wherever a notebook may be opened. Colab is emulated: a stand-in google.colab, a folder for /content.

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
HOST = Path("notebooks", "amnesia", "storage", "host.py")


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


SETUP = code_cells(FIVE[0])[1].source


def emulated(text, content):
    """The same code where these folders stand for /content, and none beside them or theirs for /kaggle."""
    return text.replace("/content", str(content)).replace("/kaggle", str(Path(content).parent / "kaggle"))


def run_setup(cwd, content="/content", colab=None, repo_url="", use_drive=True, before="", after=""):
    """Runs the cell twice in a fresh Python; returns what it printed, and what it made importable as the last line."""
    cell = emulated(SETUP, content)
    code = f"import sys\nold = sys.path[:]\nuse_drive, REPO_URL = {use_drive}, {repo_url!r}\n{before}\n{cell}\n{cell}\n"
    code += f"new = [path for path in sys.path if path not in old]\n{after}\nprint('|'.join(new))"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(colab or ""), "GIT_TERMINAL_PROMPT": "0"})


def found(result, root):
    """Did the cell find this root, make its two folders importable, and each once?"""
    return result.stdout.splitlines()[-1:] == [f"{root}/notebooks|{root}/notebooks/studies"]


@pytest.fixture
def colab(tmp_path):
    """A stand-in for google.colab; its drive.mount makes the folder, or fails if REFUSE is set. A Drive with a folder in it
    counts as mounted."""
    package = tmp_path / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "drive.py").write_text("import os\nfrom pathlib import Path\ndef mount(path):\n"
                                      "    if 'REFUSE' in os.environ: raise ValueError('mount failed')\n"
                                      "    (Path(path) / 'MyDrive').mkdir(parents=True, exist_ok=True)\n"
                                      "    print('Mounted at', path)\n")
    (tmp_path / "packages" / "sitecustomize.py").write_text(MOUNTED)
    (tmp_path / "content").mkdir()
    return tmp_path / "packages"


MOUNTED = ("import os\nreal_ismount = os.path.ismount\n"
           "os.path.ismount = lambda path: os.path.isdir(os.path.join(path, 'MyDrive')) or real_ismount(path)\n")


@pytest.fixture
def project(tmp_path):
    """project(folder): makes a folder that looks like the project, in the emulated world."""
    def make(folder):
        (folder / HOST).parent.mkdir(parents=True)
        (folder / HOST).write_text(emulated((REPOSITORY / HOST).read_text(), tmp_path / "content"))
        return folder
    return make


def serve(folder):
    """Makes the folder a git repository and returns its address."""
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return f"file://{folder}"


def test_the_setup_cell_is_the_same_everywhere_short_and_folded():
    cells = [code_cells(path)[1] for path in [*FIVE, *STUDIES]]
    assert {cell.source for cell in cells} == {SETUP} and SETUP.startswith("#@title") and len(SETUP.splitlines()) <= 12
    assert all(cell.metadata["cellView"] == "form" and cell.metadata["jupyter"]["source_hidden"] for cell in cells)
    assert max(map(len, SETUP.splitlines())) <= 125 and not any(cell.outputs for cell in cells)


@pytest.mark.parametrize("path", FIVE, ids=lambda path: path.stem)
def test_a_lesson_begins_after_at_most_45_lines(path):
    parameters, setup, stage = code_cells(path)[:3]
    assert "parameters" in parameters.metadata.tags and stage.source.startswith("# This stage")
    assert sum(len(cell.source.splitlines()) for cell in (parameters, setup, stage)) <= 45
    few = ["workspace", "device", "overwrite", "use_drive", "REPO_URL"]         # below those of the lesson
    assert re.findall(r"^(\w+) = ", parameters.source, re.MULTILINE)[-len(few):] == few


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/studies"])
def test_root_and_its_folders(place):
    result = run_setup(REPOSITORY / place)
    assert found(result, REPOSITORY), result.stderr


@pytest.mark.parametrize("place", ["MyDrive/selective-amnesia", "MyDrive/my copy [2]", "MyDrive/Colab Notebooks/amnesia",
                                   "Shareddrives/our lab/selective-amnesia"])
def test_colab_finds_the_project_on_drive(colab, project, tmp_path, place):
    """In its own folder, under another name, or on a shared drive."""
    content = tmp_path / "content"
    root = project(content / "drive" / place)
    result = run_setup(content, content, colab)
    assert "Mounted at" in result.stdout and found(result, root), result.stderr


def test_colab_takes_the_folder_of_the_right_name_before_any_other(colab, project, tmp_path):
    drive = tmp_path / "content" / "drive" / "MyDrive"
    for name in ("a copy", "selective-amnesia", "zzz"):
        project(drive / name)
    assert found(run_setup(tmp_path / "content", tmp_path / "content", colab), drive / "selective-amnesia")


def test_colab_without_drive_uses_the_working_folder(colab, project, tmp_path, monkeypatch):
    content = tmp_path / "content"
    root = project(content / "selective-amnesia")
    result = run_setup(content, content, colab, use_drive=False)
    assert "Mounted" not in result.stdout and found(result, root), result.stderr
    monkeypatch.setenv("REFUSE", "1")
    result = run_setup(content, content, colab)
    assert "do not survive a disconnect" in result.stdout and found(result, root)


def test_a_working_folder_that_is_gone_is_no_obstacle(colab, project, tmp_path):
    content = tmp_path / "content"
    gone = content / "gone"
    gone.mkdir()
    root = project(content / "drive" / "MyDrive" / "selective-amnesia")
    result = run_setup(gone, content, colab, before=f"import os; os.rmdir({str(gone)!r})")
    assert found(result, root), result.stderr


def test_colab_clones_the_address_it_is_given(colab, project, tmp_path):
    """Once, although the cell is run twice, and although a clone was cut off before."""
    content, address = tmp_path / "content", serve(project(tmp_path / "source"))
    project(content / "selective-amnesia.part")
    result = run_setup(content, content, colab, repo_url=address)
    assert found(result, content / "selective-amnesia"), result.stderr
    assert result.stderr.count("Cloning into") == 1 and not (content / "selective-amnesia.part").exists()


def test_a_clone_that_was_cut_off_is_not_taken_for_the_project(colab, project, tmp_path):
    """A stand-in for git that dies in the middle of its work, first; then the real one, in the same kernel."""
    content, address = tmp_path / "content", serve(project(tmp_path / "source"))
    cut_off = ("import subprocess\nfrom pathlib import Path\nreal = subprocess.run\n"
               "def half(command, **options):\n    subprocess.run = real\n"
               "    (Path(command[-1]) / 'notebooks' / 'amnesia').mkdir(parents=True)\n    raise KeyboardInterrupt\n"
               "subprocess.run = half\ntry:\n" + "\n".join(f"    {line}" for line in emulated(SETUP, content).splitlines())
               + "\nexcept KeyboardInterrupt: print('cut off')\n")
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
    cell = emulated(SETUP, tmp_path / "content").splitlines()
    twice = ("try:\n" + "\n".join(f"    {line}" for line in cell)
             + "\nexcept FileNotFoundError as error: print('FIRST', error)\n")
    result = run_setup(tmp_path / "content", tmp_path / "content", colab, address, use_drive, before=twice)
    sentence = result.stderr.splitlines()[-1].removeprefix("FileNotFoundError: ")
    assert f"FIRST {sentence}" in result.stdout.splitlines(), result.stderr
    assert re.search(rf"REPO_URL={address!r}\. Put that folder on My Drive .* and run this cell again\.$", sentence)


def test_colab_installs_only_what_is_missing(colab, project, tmp_path):
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
    assert names <= set(re.findall(r'"(\w+)"', (REPOSITORY / HOST).read_text().partition("NEEDED =")[2]))


def test_a_mount_that_is_refused_leaves_the_disk_of_the_machine(colab, project, tmp_path, monkeypatch):
    """Its reason may be any, and an empty mount point may be left: Workspace would take that for a Drive that was lost."""
    content = tmp_path / "content"
    root = project(content / "selective-amnesia")
    (content / "drive").mkdir()
    monkeypatch.setenv("REFUSE", "1")
    result = run_setup(content, content, colab)
    assert "do not survive a disconnect" in result.stdout and found(result, root) and not (content / "drive").exists()


@pytest.mark.parametrize("machine", ["Kaggle", "an old package", "an old package beside a /content"])
def test_google_colab_outside_colab_is_left_alone(colab, project, tmp_path, machine):
    """As on Kaggle, whose image is made from Colab's: mounting would wait for a browser that is not there."""
    (colab / "google" / "colab" / "drive.py").write_text(
        "import time\ndef mount(path):\n    time.sleep(60)\n" if machine != "an old package beside a /content" else
        "raise NameError('drive')\n")
    content = tmp_path / "content"
    if machine == "an old package":
        content.rmdir()
    root = project(tmp_path / "kaggle" / "input" / "uploaded" / "my copy" if machine == "Kaggle" else tmp_path / "here")
    working = tmp_path / "kaggle" / "working" if machine == "Kaggle" else root
    working.mkdir(parents=True, exist_ok=True)
    result = run_setup(working, content, colab)
    assert found(result, root), result.stderr
    assert not list(tmp_path.glob("content/*"))


@pytest.mark.slow
def test_kaggle_finds_a_data_set_and_writes_to_its_working_folder(project, tmp_path):
    """The real helper, in a data set, which nobody may write to."""
    root, working = tmp_path / "kaggle" / "input" / "selective-amnesia", tmp_path / "kaggle" / "working"
    shutil.copytree(REPOSITORY / "notebooks" / "amnesia", root / "notebooks" / "amnesia")
    for path in root.rglob("*.py"):
        path.write_text(emulated(path.read_text(), tmp_path / "content"))
    working.mkdir()
    after = "from amnesia import Workspace\nprint('STATE', Workspace().folder)"
    result = run_setup(working, tmp_path / "content", after=after)
    assert found(result, root) and f"STATE {working}" in result.stdout, result.stderr


def test_elsewhere_an_address_is_fetched_beside_the_notebook(project, tmp_path):
    """Once, and without /content."""
    (tmp_path / "here").mkdir()
    result = run_setup(tmp_path / "here", tmp_path / "content", repo_url=serve(project(tmp_path / "source")))
    assert found(result, tmp_path / "here" / "selective-amnesia"), result.stderr
    assert result.stderr.count("Cloning into") == 1


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
        path.write_text(emulated(path.read_text(), content))
    often = "\n\nSAVE_SECONDS = SAVE_SECONDS_ON_DRIVE = 1\n"
    (source / "notebooks" / "amnesia" / "storage" / "workspace.py").open("a").write(often)
    (colab / "google" / "colab" / "drive.py").write_text(
        f"from pathlib import Path\ndef mount(path):\n    Path(path).mkdir(exist_ok=True)\n"
        f"    if not (Path(path) / 'MyDrive').exists(): (Path(path) / 'MyDrive').symlink_to({str(cloud)!r})\n")
    (colab / "sitecustomize.py").write_text(MOUNTED +  # and an installation would end the notebook
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


@pytest.mark.slow
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
    assert lineage.keys() == {"cvae.pt", "amnesiac-0.pt"}
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
