"""The notebooks: as committed, as cells in this process, and the five in order in kernels of their own, small."""

import ast
import base64
import hashlib
import html
import io
import itertools
import json
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import time

import nbformat
import papermill
import PIL.Image
import psutil
import pytest
import torch
from cells import STEMS, code, execute, run_here
from conftest import BUDGETS, REPOSITORY, run_in_a_kernel

import amnesia
from amnesia import CVAE, Stage, Workspace
from amnesia.figures import moving_png
from amnesia.storage.disk import WorkspaceError

NOTEBOOKS = [REPOSITORY / "notebooks" / f"{stem}.ipynb" for stem in STEMS]
RELEASED = REPOSITORY / "checkpoints" / "released"
ALL = [*NOTEBOOKS, *sorted((REPOSITORY / "notebooks" / "studies").glob("*.ipynb"))]


def text(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def pictures(notebook):
    """The bytes of every picture that a notebook shows."""
    return [base64.b64decode(output["data"]["image/png"]) for cell in notebook.cells
            for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def moves(picture):
    """Is this picture, bytes, a PNG that moves?"""
    return picture.startswith(b"\x89PNG") and PIL.Image.open(io.BytesIO(picture)).is_animated


def widgets(notebook):
    """Is there anything of ipywidgets in a notebook? GitHub then calls it invalid, or shows a gap."""
    mimes = {mime for cell in notebook.cells for output in cell.get("outputs", []) for mime in output.get("data", {})}
    return "widgets" in notebook.metadata or any("widget" in mime for mime in mimes)


def load(workspace, name):
    return torch.load(workspace / "checkpoints" / name, weights_only=True)


@pytest.mark.slow
def test_01_learns_and_shows_it(series):
    saved = load(series[0], "cvae.pt")
    CVAE(**saved["config"]).load_state_dict(saved["state"])
    history = saved["metrics"]
    total = history["test_reconstruction"] + history["test_kl"]
    assert total[0] > 190 and total[-1] < 140  # nats per image; 206.6 is the average image alone
    moving = [picture for picture in pictures(series[1]["01"]) if moves(picture)]
    assert len(moving) == 1 and PIL.Image.open(io.BytesIO(moving[0])).n_frames > 20
    assert moving_png((series[0] / "figures" / "cvae_training.gif").read_bytes()) == moving[0]
    assert len(pictures(series[1]["01"])) == 5


@pytest.mark.slow
def test_02_has_a_value_for_every_weight(series):
    cvae, fim = load(series[0], "cvae.pt"), load(series[0], "fim-cvae.pt")
    assert {k: v.shape for k, v in fim["state"].items()} == {k: v.shape for k, v in cvae["state"].items()}
    assert all((value >= 0).all() for value in fim["state"].values())
    differences = re.findall(r"largest relative difference of any layer from [\w ]+: (\S+)", text(series[1]["02"]))
    assert len(differences) == 2 and max(map(float, differences)) < 1e-12   # float32 cannot promise that: see there
    assert len(pictures(series[1]["02"])) == 3


@pytest.mark.slow
def test_03_forgets_the_digit_only(series):
    history = load(series[0], "amnesiac-0.pt")["metrics"]
    before, after = history["frames"][[0, -1]].float()
    assert after[0].std((1, 2)).mean() < 0.6 * before[0].std((1, 2)).mean()  # dissolving
    assert (after[1:] - before[1:]).abs().mean() < 25
    assert history["terms"]["forget"][-1] < 700 and (history["terms"]["protect"] >= 0).all()
    P, H = history["P"], history["H"]                                   # as the judge saw it, at the same moments
    assert P.shape == H.shape == history["snapshot_steps"].shape
    assert P[-1] < 0.5 * P[0] and H[-1] > H[0]
    assert sum(map(moves, pictures(series[1]["03"]))) == 1
    assert len(pictures(series[1]["03"])) == 4


@pytest.mark.slow
def test_04_twins_share_their_latents(series):
    twins = load(series[0], "samples-0.pt")["state"]
    assert {k: (v.dtype, tuple(v.shape)) for k, v in twins.items()} == dict.fromkeys(
        ("original", "amnesiac"), (torch.uint8, (10, 50, 28, 28)))
    difference = (twins["original"].int() - twins["amnesiac"].int()).abs().float().mean((1, 2, 3))
    assert difference[0] > 2 * difference[1:].max()
    assert (series[0] / "figures" / "comparison-0.png").stat().st_size > 10_000
    assert len(pictures(series[1]["04"])) == 4                          # the last is what stands where no panel can
    assert not widgets(series[1]["04"])


@pytest.mark.slow
def test_05_scores_both_models_and_prints_the_chain(series):
    result = json.loads((series[0] / "checkpoints" / "evaluation-0.json").read_text())
    assert result["amnesiac"]["forgotten_probability"] < result["original"]["forgotten_probability"]
    assert result["amnesiac"]["forgotten_elbo"] < result["original"]["forgotten_elbo"] - 50
    assert result["original"]["kept_accuracy"] > 0.5
    assert all(sum(row) == 50 for block in ("original", "amnesiac") for row in result[block]["confusion"])
    assert {"real", "grey", "noise", "kept_frechet_floor"} <= result["reference"].keys()
    assert len(pictures(series[1]["05"])) == 1
    lineage = {name: load(series[0], name)["lineage"] for name in ("fim-cvae.pt", "amnesiac-0.pt", "samples-0.pt")}
    assert lineage["samples-0.pt"]["cvae.pt"] == lineage["fim-cvae.pt"]["cvae.pt"] == result["lineage"]["cvae.pt"]
    assert result["lineage"]["cvae.pt"][:12] in text(series[1]["05"])


@pytest.fixture
def finished(series, tmp_path):
    """A copy of the series' workspace, to go on in."""
    return shutil.copytree(series[0], tmp_path / "finished")


@pytest.mark.slow
def test_a_finished_stage_loads_and_shows_the_same(series, finished):
    again = run_in_a_kernel(NOTEBOOKS[2], finished, **BUDGETS["03"])
    assert "Already done with these settings" in text(again)
    assert pictures(again) == pictures(series[1]["03"])


@pytest.mark.slow
def test_a_notebook_killed_in_the_middle_goes_on_and_ends_with_the_same_bytes(series, tmp_path):
    """kill -9 to papermill and its kernel once progress is on disk; the run that follows equals one never cut off."""
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("studies"))
    with open(tmp_path / "notebooks" / "amnesia" / "storage" / "workspace.py", "a") as module:
        module.write("\n\nSAVE_SECONDS = 0\n")                        # saves at every look at the clock
    notebook, home = tmp_path / "notebooks" / NOTEBOOKS[0].name, tmp_path / "cut"
    parameters = json.dumps({"workspace": str(home), "device": "cpu", **BUDGETS["01"]})
    command = [sys.executable, "-m", "papermill", "-y", parameters, notebook, tmp_path / "cut.ipynb"]
    victim = psutil.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    unfinished = home / "checkpoints" / "cvae.unfinished.pt"
    while not unfinished.exists():
        assert victim.poll() is None, "the notebook ended before any progress was saved"
        time.sleep(0.1)
    for process in [*victim.children(recursive=True), victim]:
        process.kill()
    victim.wait()
    assert not (home / "checkpoints" / "cvae.pt").exists()
    assert "Going on from step" in text(run_in_a_kernel(notebook, home, tmp_path, **BUDGETS["01"]))
    assert not unfinished.exists()
    for file in ("checkpoints/cvae.pt", "figures/cvae_training.gif"):
        assert (home / file).read_bytes() == (series[0] / file).read_bytes()


@pytest.mark.slow
def test_several_digits_another_label_as_surrogate_and_terms_switched_off(finished, few, monkeypatch):
    """3 and 8 are to look like 7, with no spring and no replay: quick to learn, ruinous for the rest, and it runs."""
    monkeypatch.setattr(amnesia, "load_digits", lambda *_: few)
    run_here(STEMS[2], workspace=str(finished), forget=[8, 3], surrogate=7, lam=0.0, gamma=0.0, steps=400, batch_size=64,
             learning_rate=1e-2)
    for stem in STEMS[3:]:
        run_here(stem, workspace=str(finished), forget=[3, 8], n_per_class=50)
    terms = load(finished, "amnesiac-3-8.pt")["metrics"]["terms"]
    assert terms["remember"].abs().sum() == terms["protect"].abs().sum() == 0
    assert terms["forget"][-10:].mean() < terms["forget"][:10].mean()
    result = json.loads((finished / "checkpoints" / "evaluation-3-8.json").read_text())
    before, after = (sum(result[title]["confusion"][asked][7] for asked in (3, 8)) for title in ("original", "amnesiac"))
    assert after > 30 and after > 3 * before  # of 100


@pytest.mark.parametrize(("stem", "parameters", "message"), [
    (STEMS[2], {"forget": []}, "forget=[]"), (STEMS[2], {"surrogate": 0}, "surrogate=0 is itself"),
    (STEMS[2], {"remember": "replays"}, "remember='replays'"), (STEMS[1], {"n_samples": 0}, "n_samples=0"),
    (STEMS[0], {"dataset": "Omniglot"}, "dataset='Omniglot'"), (STEMS[3], {"dataset": "Omniglot"}, "dataset='Omniglot'")])
def test_a_bad_parameter_stops_before_any_work(tmp_path, stem, parameters, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_here(stem, "# This stage", workspace=str(tmp_path), **parameters)
    assert not list((tmp_path / "checkpoints").rglob("*"))


def test_a_fim_of_another_model_is_refused(tmp_path, cvae):
    """One's own CVAE beside the released FIM: the notebook names the stage to run."""
    Stage(Workspace(tmp_path), "cvae.pt", {"dataset": "MNIST"}).save(state=cvae.state_dict(), config=cvae.config, metrics={})
    with pytest.raises(WorkspaceError, match=r"fim-cvae\.pt was not made from this.*02_compute_fim"):
        run_here(STEMS[2], workspace=str(tmp_path))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_what_is_committed_is_executed_clean_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert "\r" not in text(notebook) and not widgets(notebook)
    assert path.stat().st_size < 1_500_000
    assert max(map(len, pictures(notebook))) < 400_000


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_what_is_committed_is_unanswered(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if BLANK.search(cell.source):
            assert "".join(output.get("text", "") for output in cell.outputs).startswith("Not answered yet: "), cell.source


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_stored_picture_is_a_png_with_its_words(path):
    """As show() sends them: VS Code takes them from text/plain, other renderers from the metadata or from what follows."""
    for cell in nbformat.read(path, as_version=4).cells:
        outputs = cell.get("outputs", [])
        for place, output in enumerate(outputs):
            if "image/png" in output.get("data", {}):
                alt, words = output.metadata["image/png"]["alt"], outputs[place + 1].data
                assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG\r\n")
                assert output.data["text/plain"] == alt and words.keys() == {"text/html"}
                assert html.unescape(words["text/html"]).endswith(f">{alt}</p>")


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_column_of_a_table_has_its_heading(path):
    """For a screen reader that names the column of a cell."""
    for cell in nbformat.read(path, as_version=4).cells:
        tables = cell.source + "".join(f"\n{output.data['text/markdown']}" for output in cell.get("outputs", [])
                                       if "text/markdown" in output.get("data", {}))
        for heading in re.findall(r"^\|(.*)\|\n\|[-:| ]+\|$", tables, re.MULTILINE):
            assert all(word.strip() for word in heading.split("|")), heading


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_figures_start_from_the_notebooks_own_style(path):
    """subplots() of the helper, not plt's, whose figures are in the reader's."""
    assert "pyplot" not in "".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_text_of_a_picture_is_the_code_s(path):
    """As far as it stands there: what a run fills in may be anything."""
    for cell in nbformat.read(path, as_version=4).cells:
        shown = [output.metadata.get("image/png", {}).get("alt") for output in cell.get("outputs", [])
                 if "image/png" in output.get("data", {})]
        if cell.cell_type == "code" and shown:
            tree = ast.walk(ast.parse(cell.source))
            parts = [getattr(word.value, "values", [word.value]) for word in tree
                     if isinstance(word, ast.keyword) and word.arg == "alt"]
            patterns = ["".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in alt)
                        for alt in parts]
            assert all(any(re.fullmatch(pattern, alt) for pattern in patterns) for alt in shown), (shown, patterns)


def test_what_the_five_print_is_what_the_released_files_hold():
    """Whatever stands in both: the model's machine, F's total, the ends of the curves, twins' difference, every digest."""
    released = REPOSITORY / "checkpoints" / "released"
    said = {path.stem[:2]: text(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    cvae, fim, amnesiac, samples = (torch.load(released / name, weights_only=True)
                                    for name in ("cvae.pt", "fim-cvae.pt", "amnesiac-0.pt", "samples-0.pt"))
    assert f"torch {cvae['versions']['torch']}, {cvae['versions']['hardware']}" in said["01"]
    assert f"total Fisher information {fim['metrics']['total']:,.0f}," in said["02"]
    history = amnesiac["metrics"]
    for key in ("P", "H"):
        assert f"{key}: {history[key][0]:.3f} before, {history[key][-1]:.3f} after" in said["03"]
    for term, values in history["terms"].items():
        assert f"{term} {values[-80:].mean():.2f}" in said["03"]
    a, b = (samples["state"][title][1:].int() for title in ("original", "amnesiac"))
    assert f"kept: twins differ by {(a - b).abs().float().mean():.2f} of 255" in said["04"]
    chain = re.findall(r"^(?:  made from )?(\S+\.(?:pt|json))  \((\w{12})\)$", said["05"], re.MULTILINE)
    assert {name for name, _ in chain} == {"evaluation-0.json", "cvae.pt", "amnesiac-0.pt", "samples-0.pt", "classifier.pt"}
    for name, digest in chain:
        assert hashlib.sha256((released / name).read_bytes()).hexdigest().startswith(digest), name


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_code_that_a_notebook_lists_is_the_code(path):
    code = "\n".join(file.read_text() for file in (REPOSITORY / "notebooks").rglob("*.py"))
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            listing = output.get("data", {}).get("text/plain", "").strip()
            if listing.startswith(("def ", "class ", "@")):
                assert listing in code, listing


def test_committed_figures_are_small():
    figures = [path for path in (REPOSITORY / "figures" / "released").rglob("*") if path.is_file()]
    most = {".png": 400_000, ".gif": 400_000, ".svg": 150_000, ".html": 3_000_000}
    assert figures and all(path.stat().st_size < most.get(path.suffix, 0) for path in figures)


@pytest.mark.slow
def test_another_data_set_goes_through_all_five(tmp_path, digits, monkeypatch, capsys):
    """KMNIST, a stand-in: real digits in its files. The judge, which is trained on first use, was used before."""
    raw, checkpoints = tmp_path / "data" / "KMNIST" / "raw", tmp_path / "checkpoints" / "KMNIST"
    raw.mkdir(parents=True)
    checkpoints.mkdir(parents=True)
    for split, name, n in zip(digits, ("train", "t10k"), (60_000, 10_000), strict=True):
        index = torch.arange(1, n + 1) % len(split)     # in another order than MNIST, which is known by its MD5
        images, labels = split.images[index].numpy().tobytes(), split.labels[index].byte().numpy().tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 28, 28) + images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + labels)
    monkeypatch.setenv("AMNESIA_DATA", str(tmp_path / "data"))
    judge = torch.load(RELEASED / "classifier.pt", weights_only=True)
    torch.save({**judge, "lineage": {"KMNIST train (60,000 images)": "0" * 64}}, checkpoints / "classifier.pt")
    for stem, budget in zip(STEMS, ({"steps": 20}, {"n_samples": 500}, {"steps": 10}, {"n_per_class": 20}, {}), strict=True):
        run_here(stem, workspace=str(tmp_path), dataset="KMNIST", **budget)
    printed = capsys.readouterr().out
    assert "Samples asked for as o, step by step" in printed and "training this judge" not in printed
    evaluation = json.loads((checkpoints / "evaluation-0.json").read_text())
    assert evaluation["settings"]["dataset"] == "KMNIST"
    assert {"classifier.pt", "KMNIST test (10,000 images)"} < evaluation["lineage"].keys()
    assert (tmp_path / "figures" / "KMNIST" / "comparison-0.png").exists()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"KMNIST"}


@pytest.mark.slow
def test_a_model_that_has_forgotten_forgets_one_more(tmp_path, few, monkeypatch):
    """From amnesiac-0.pt by its own FIM to amnesiac-0-3.pt; 0 is neither forgotten again nor scored as kept."""
    monkeypatch.setattr(amnesia, "load_digits", lambda *_: few)
    choices = {"workspace": str(tmp_path), "model": "amnesiac-0", "forget": [3], "steps": 20, "n_samples": 500,
               "n_per_class": 50}
    for stem in STEMS[1:]:
        run_here(stem, "stage.save(", **choices)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "fim-amnesiac-0.pt", "amnesiac-0-3.pt", "samples-0-3.pt", "evaluation-0-3.json"}
    result = json.loads((tmp_path / "checkpoints" / "evaluation-0-3.json").read_text())
    hits = [result["amnesiac"]["confusion"][digit][digit] for digit in (1, 2, 4, 5, 6, 7, 8, 9)]
    assert result["amnesiac"]["kept_accuracy"] == pytest.approx(sum(hits) / 400)
    with pytest.raises(ValueError, match=r"has forgotten \[0\] already"):
        run_here(STEMS[2], **{**choices, "forget": [0]})
    with pytest.raises(WorkspaceError, match="choose another `model`"):
        run_here(STEMS[3], **{**choices, "model": "cvae", "forget": [0, 3]})


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_parameter_is_explained_by_papermill_and_is_a_field_in_colab(path):
    """What `papermill --help-notebook` prints: the comment on the parameter's line, Colab's mark first."""
    cell = next(cell for cell in nbformat.read(path, as_version=4).cells if "parameters" in cell.metadata.get("tags", []))
    found = papermill.inspect_notebook(path)
    assert list(found) == [line.split(" = ")[0] for line in cell.source.splitlines() if line]
    for parameter in found.values():
        assert re.fullmatch(r"@param (\{.*\}|\[.*\])  # .{9,}", parameter["help"]), parameter


BLANK = re.compile(r"^(\w+) = None +# your answer$", re.MULTILINE)
FOLDED = re.compile(r"<details><summary>Answer</summary>\n\n```python\n(.*?)\n```", re.DOTALL)
# What a reader may write who has missed the point, for the questions of each notebook in their order
WRONG = {"01": ["(mean.square() + log_var.exp() - 1 - log_var).sum(1)",
                "rate * sum(p.grad.square().sum() for p in pupil.parameters())"],
         "02": ['each["decoder.4.weight"].mean(0).square()', '"more"', '(fim["encoder.0.bias"] == 0).float().mean()'],
         "03": ["784 / 2", "-(p.mean(0) * p.mean(0).log()).sum()"], "04": ["127.5", "latent_dim"],
         "05": ["1.96 * p.std()", "share.diagonal().mean()"]}


def filled(stem, answers):
    """A notebook's cells of code with these answers in the places of its blanks, one after another; below them those of its
    exercises, as a reader would try them."""
    answers, cells = iter(answers), []
    for source in code(stem):
        tried = next(answers) if BLANK.search(source) else None
        cells += [source] if tried is None else [BLANK.sub(lambda blank, answer=answer: f"{blank[1]} = {answer}", source)
                                                 for answer in tried]
    last = nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4).cells[-1].source
    return cells, list(map(textwrap.dedent, re.findall(r"```python\n(.*?)```", last, re.DOTALL)))


def folded(stem):
    """The answers that lie folded below a notebook's questions, as code: each in the cell that follows its question."""
    cells = nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    found = []
    for cell, after in itertools.pairwise(cells):
        if blank := BLANK.search(cell.source):
            name, answer = FOLDED.match(after.source)[1].split(" = ", 1)
            assert name == blank[1]
            found.append(answer)
    return found


SAID = re.compile(r"^(Right|Not yet right|Not answered yet): ", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEMS)
def test_questions_tell_a_blank_a_wrong_and_the_folded_answer_and_the_code_of_the_exercises_runs(finished, capsys, stem):
    answers = folded(stem)
    assert 2 <= len(answers) <= 3
    cells, exercises = filled(stem, [("None", *both) for both in zip(WRONG[stem[:2]], answers, strict=True)])
    assert len(exercises) == (0 if stem == STEMS[2] else 3)                 # notebook 3's change a parameter
    execute([*cells, *exercises], workspace=str(finished), **BUDGETS[stem[:2]])
    assert SAID.findall(capsys.readouterr().out) == ["Not answered yet", "Not yet right", "Right"] * len(answers)


@pytest.mark.slow
def test_the_folded_answers_are_right_of_other_models_surrogates_and_digits(tmp_path, few, monkeypatch, capsys):
    """With two latents, 3 and 8 to mean 7, and other budgets."""
    monkeypatch.setattr(amnesia, "load_digits", lambda *_: few)
    choices = {"latent_dim": 2, "n_samples": 1000, "forget": [3, 8], "surrogate": 7, "remember": "replay", "n_per_class": 60}
    for stem in STEMS:
        cells, _ = filled(stem, [[answer] for answer in folded(stem)])
        execute(cells, workspace=str(tmp_path), steps=300 if stem == STEMS[0] else 60, **choices)
        assert SAID.findall(capsys.readouterr().out) == ["Right"] * len(folded(stem)), stem
