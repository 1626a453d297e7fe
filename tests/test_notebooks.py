"""The five notebooks, run in order by papermill in a workspace of their own with small budgets; judged by what they make."""

import ast
import base64
import copy
import hashlib
import html
import io
import itertools
import json
import re
import shutil
import struct
import subprocess
import textwrap
import time

import nbformat
import papermill
import PIL.Image
import psutil
import pytest
import torch
from conftest import REPOSITORY

from amnesia import CVAE
from amnesia.figures import moving_png

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))
ALL = [*NOTEBOOKS, *sorted((REPOSITORY / "notebooks" / "studies").glob("*.ipynb"))]
BUDGETS = {"01": {"steps": 600, "batch_size": 64}, "02": {"n_samples": 2000},
           "03": {"steps": 500, "batch_size": 64, "learning_rate": 1e-2, "lam": 0.05}, "04": {"n_per_class": 50}, "05": {}}


def run(notebook, workspace, cwd=REPOSITORY, **parameters):
    """Executes a notebook and returns it; raises papermill's error if a cell does."""
    output = workspace / "executed" / notebook.name
    output.parent.mkdir(parents=True, exist_ok=True)
    parameters = {"workspace": str(workspace), "device": "cpu", **parameters}
    return papermill.execute_notebook(notebook, output, parameters, cwd=cwd, progress_bar=False)


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


@pytest.fixture(scope="module")
def series(tmp_path_factory, digits):
    """(workspace, {"01": executed notebook, …}); started from the repository's root and from notebooks/ in turn."""
    workspace, executed = tmp_path_factory.mktemp("workspace"), {}
    for i, notebook in enumerate(NOTEBOOKS):
        cwd = REPOSITORY if i % 2 else REPOSITORY / "notebooks"
        executed[notebook.stem[:2]] = run(notebook, workspace, cwd, **BUDGETS[notebook.stem[:2]])
    return workspace, executed


def load(series, name):
    return torch.load(series[0] / "checkpoints" / name, weights_only=True)


def test_01_learns_and_shows_it(series):
    saved = load(series, "cvae.pt")
    CVAE(**saved["config"]).load_state_dict(saved["state"])
    history = saved["metrics"]
    total = history["test_reconstruction"] + history["test_kl"]
    assert total[0] > 190 and total[-1] < 140  # nats per image; 206.6 is the average image alone
    moving = [picture for picture in pictures(series[1]["01"]) if moves(picture)]
    assert len(moving) == 1 and PIL.Image.open(io.BytesIO(moving[0])).n_frames > 20
    assert moving_png((series[0] / "figures" / "cvae_training.gif").read_bytes()) == moving[0]
    assert len(pictures(series[1]["01"])) == 5


def test_02_has_a_value_for_every_weight(series):
    cvae, fim = load(series, "cvae.pt"), load(series, "fim-cvae.pt")
    assert {k: v.shape for k, v in fim["state"].items()} == {k: v.shape for k, v in cvae["state"].items()}
    assert all((value >= 0).all() for value in fim["state"].values())
    differences = re.findall(r"largest relative difference of any layer from [\w ]+: (\S+)", text(series[1]["02"]))
    assert len(differences) == 2 and max(map(float, differences)) < 1e-12   # float32 cannot promise that: see there
    assert len(pictures(series[1]["02"])) == 3


def test_03_forgets_the_digit_only(series):
    history = load(series, "amnesiac-0.pt")["metrics"]
    before, after = history["frames"][[0, -1]].float()
    assert after[0].std((1, 2)).mean() < 0.6 * before[0].std((1, 2)).mean()  # dissolving
    assert (after[1:] - before[1:]).abs().mean() < 25
    assert history["terms"]["forget"][-1] < 700 and (history["terms"]["protect"] >= 0).all()
    P, H = history["P"], history["H"]                                   # as the judge saw it, at the same moments
    assert P.shape == H.shape == history["snapshot_steps"].shape
    assert P[-1] < 0.5 * P[0] and H[-1] > H[0]
    assert sum(map(moves, pictures(series[1]["03"]))) == 1
    assert len(pictures(series[1]["03"])) == 4


def test_04_twins_share_their_latents(series):
    twins = load(series, "samples-0.pt")["state"]
    assert {k: (v.dtype, tuple(v.shape)) for k, v in twins.items()} == dict.fromkeys(
        ("original", "amnesiac"), (torch.uint8, (10, 50, 28, 28)))
    difference = (twins["original"].int() - twins["amnesiac"].int()).abs().float().mean((1, 2, 3))
    assert difference[0] > 2 * difference[1:].max()
    assert (series[0] / "figures" / "comparison-0.png").stat().st_size > 10_000
    assert len(pictures(series[1]["04"])) == 4                          # the last is what stands where no panel can
    assert not widgets(series[1]["04"])


def test_05_scores_both_models_and_prints_the_chain(series):
    result = json.loads((series[0] / "checkpoints" / "evaluation-0.json").read_text())
    assert result["amnesiac"]["forgotten_probability"] < result["original"]["forgotten_probability"]
    assert result["amnesiac"]["forgotten_elbo"] < result["original"]["forgotten_elbo"] - 50
    assert result["original"]["kept_accuracy"] > 0.5
    assert all(sum(row) == 50 for block in ("original", "amnesiac") for row in result[block]["confusion"])
    assert {"real", "grey", "noise", "kept_frechet_floor"} <= result["reference"].keys()
    assert len(pictures(series[1]["05"])) == 1
    lineage = {name: load(series, name)["lineage"] for name in ("fim-cvae.pt", "amnesiac-0.pt", "samples-0.pt")}
    assert lineage["samples-0.pt"]["cvae.pt"] == lineage["fim-cvae.pt"]["cvae.pt"] == result["lineage"]["cvae.pt"]
    assert result["lineage"]["cvae.pt"][:12] in text(series[1]["05"])


def test_a_finished_stage_loads_and_shows_the_same(series):
    again = run(NOTEBOOKS[2], series[0], **BUDGETS["03"])
    assert "Already done with these settings" in text(again)
    assert pictures(again) == pictures(series[1]["03"])


def test_a_notebook_killed_in_the_middle_goes_on_and_ends_with_the_same_bytes(tmp_path, digits):
    """kill -9 to papermill and its kernel once progress is on disk; the run that follows equals one never cut off."""
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("studies"))
    notebook = tmp_path / "notebooks" / NOTEBOOKS[0].name
    module = tmp_path / "notebooks" / "amnesia" / "storage" / "workspace.py"
    module.write_text(module.read_text().replace("ON_DRIVE = 8, 60", "ON_DRIVE = 0, 0"))   # saves at every look at the clock
    budget = {"steps": 800, "batch_size": 64}
    parameters = {"workspace": str(tmp_path / "cut"), "device": "cpu", **budget}
    command = ["papermill", "-y", json.dumps(parameters), notebook, tmp_path / "cut.ipynb"]
    victim = psutil.Process(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL).pid)
    unfinished = tmp_path / "cut" / "checkpoints" / "cvae.unfinished.pt"
    while not unfinished.exists():
        assert victim.status() != psutil.STATUS_ZOMBIE, "the notebook ended before any progress was saved"
        time.sleep(0.1)
    for process in [*victim.children(recursive=True), victim]:
        process.kill()
    victim.wait()
    assert not (tmp_path / "cut" / "checkpoints" / "cvae.pt").exists()

    again = run(notebook, tmp_path / "cut", tmp_path, **budget)
    assert "Going on from step" in text(again) and not unfinished.exists()
    run(notebook, tmp_path / "whole", tmp_path, **budget)
    for file in ("checkpoints/cvae.pt", "figures/cvae_training.gif"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_several_digits_another_label_as_surrogate_and_terms_switched_off(series):
    """3 and 8 are to look like 7, with no spring and no replay: quick to learn, ruinous for the rest, and it runs."""
    choices = {"forget": [8, 3], "surrogate": 7, "lam": 0.0, "gamma": 0.0, "steps": 400, "batch_size": 64,
               "learning_rate": 1e-2}
    run(NOTEBOOKS[2], series[0], **choices)
    for notebook in NOTEBOOKS[3:]:
        run(notebook, series[0], forget=[3, 8], **BUDGETS[notebook.stem[:2]])
    terms = load(series, "amnesiac-3-8.pt")["metrics"]["terms"]
    assert terms["remember"].abs().sum() == terms["protect"].abs().sum() == 0
    assert terms["forget"][-10:].mean() < terms["forget"][:10].mean()
    result = json.loads((series[0] / "checkpoints" / "evaluation-3-8.json").read_text())
    before, after = (sum(result[title]["confusion"][asked][7] for asked in (3, 8)) for title in ("original", "amnesiac"))
    assert after > 30 and after > 3 * before  # of 100


@pytest.mark.parametrize(("number", "parameters", "message"), [
    (2, {"forget": []}, "forget=[]"), (2, {"surrogate": 0}, "surrogate=0 is itself"), (1, {"n_samples": 0}, "n_samples=0"),
    (0, {"dataset": "Omniglot"}, "dataset='Omniglot'"), (3, {"dataset": "Omniglot"}, "dataset='Omniglot'")])
def test_a_bad_parameter_stops_before_any_work(series, number, parameters, message):
    before = {path: path.stat().st_mtime_ns for path in (series[0] / "checkpoints").iterdir()}
    with pytest.raises(papermill.PapermillExecutionError) as error:
        run(NOTEBOOKS[number], series[0], **{**BUDGETS[NOTEBOOKS[number].stem[:2]], **parameters})
    assert message in error.value.evalue
    assert before == {path: path.stat().st_mtime_ns for path in (series[0] / "checkpoints").iterdir()}


def test_a_fim_of_another_model_is_refused(series, tmp_path):
    """One's own CVAE beside the released FIM: the notebook names the stage to run."""
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(series[0] / "checkpoints" / "cvae.pt", tmp_path / "checkpoints")
    with pytest.raises(papermill.PapermillExecutionError) as error:
        run(NOTEBOOKS[2], tmp_path, **BUDGETS["03"])
    assert "fim-cvae.pt was not made from this" in error.value.evalue and "02_compute_fim" in error.value.evalue


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_what_is_committed_is_executed_clean_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert "\r" not in text(notebook) and not widgets(notebook)
    assert path.stat().st_size < 1_500_000 and max(len(cell.source.splitlines()) for cell in code) <= 50
    assert max(map(len, pictures(notebook))) < 400_000


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_what_is_committed_is_unanswered_and_its_code_fits_a_page(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if BLANK.search(cell.source):
            assert "".join(output.get("text", "") for output in cell.outputs).startswith("Not answered yet: "), cell.source
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []) and "#@title" not in cell.source:
            assert max(map(len, cell.source.splitlines())) <= 100


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
    most = {".png": 400_000, ".gif": 400_000, ".svg": 150_000, ".html": 2_000_000}
    assert figures and all(path.stat().st_size < most.get(path.suffix, 0) for path in figures)


def test_another_data_set_goes_through_all_five(tmp_path, digits, monkeypatch):
    """KMNIST, a stand-in: real digits in its files. The judge, which is trained on first use, was used before."""
    raw, checkpoints = tmp_path / "data" / "KMNIST" / "raw", tmp_path / "checkpoints" / "KMNIST"
    raw.mkdir(parents=True)
    checkpoints.mkdir(parents=True)
    for split, name, n in zip(digits, ("train", "t10k"), (60_000, 10_000), strict=True):
        index = torch.arange(n) % len(split)
        images, labels = split.images[index].numpy().tobytes(), split.labels[index].byte().numpy().tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 28, 28) + images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + labels)
    monkeypatch.setenv("AMNESIA_DATA", str(tmp_path / "data"))
    judge = torch.load(REPOSITORY / "checkpoints" / "released" / "classifier.pt", weights_only=True)
    torch.save({**judge, "lineage": {"KMNIST train (60,000 images)": "0" * 64}}, checkpoints / "classifier.pt")
    budgets = ({"steps": 20}, {"n_samples": 500}, {"steps": 10}, {"n_per_class": 20}, {})
    executed = [run(path, tmp_path, dataset="KMNIST", **budget) for path, budget in zip(NOTEBOOKS, budgets, strict=True)]
    assert "forgetting o; keeping ki, su, tsu, na, ha, ma, ya, re, wo" in text(executed[2])
    evaluation = json.loads((checkpoints / "evaluation-0.json").read_text())
    assert evaluation["settings"]["dataset"] == "KMNIST"
    assert {"classifier.pt", "KMNIST test (10,000 images)"} < evaluation["lineage"].keys()
    assert "training this judge" not in "".join(map(text, executed))
    assert (tmp_path / "figures" / "KMNIST" / "comparison-0.png").exists()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"KMNIST"}


def test_a_model_that_has_forgotten_forgets_one_more(series, tmp_path):
    """From amnesiac-0.pt by its own FIM to amnesiac-0-3.pt; 0 is neither forgotten again nor scored as kept."""
    shutil.copytree(series[0] / "checkpoints", tmp_path / "checkpoints")
    choices, before = {"model": "amnesiac-0", "forget": [3]}, (tmp_path / "checkpoints" / "amnesiac-0.pt").read_bytes()
    run(NOTEBOOKS[1], tmp_path, model="amnesiac-0", n_samples=500)
    run(NOTEBOOKS[2], tmp_path, **choices, steps=20, batch_size=32)
    for notebook in NOTEBOOKS[3:]:
        run(notebook, tmp_path, **choices, **BUDGETS[notebook.stem[:2]])
    assert (tmp_path / "checkpoints" / "amnesiac-0.pt").read_bytes() == before
    result = json.loads((tmp_path / "checkpoints" / "evaluation-0-3.json").read_text())
    hits = [result["amnesiac"]["confusion"][digit][digit] for digit in (1, 2, 4, 5, 6, 7, 8, 9)]
    assert result["amnesiac"]["kept_accuracy"] == pytest.approx(sum(hits) / 400)
    for notebook, refused in ((NOTEBOOKS[2], {**choices, "forget": [0]}), (NOTEBOOKS[3], {"forget": [0, 3]})):
        with pytest.raises(papermill.PapermillExecutionError) as error:
            run(notebook, tmp_path, **refused)
        assert "has forgotten [0] already" in error.value.evalue or "choose another `model`" in error.value.evalue


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_parameter_is_explained_by_papermill_and_is_a_field_in_colab(path):
    """What `papermill --help-notebook` prints: the comment on the parameter's line, Colab's mark first."""
    cell = next(cell for cell in nbformat.read(path, as_version=4).cells if "parameters" in cell.metadata.get("tags", []))
    found = papermill.inspect_notebook(path)
    assert list(found) == [line.split(" = ")[0] for line in cell.source.splitlines() if line]
    for parameter in found.values():
        assert re.fullmatch(r"@param (\{.*\}|\[.*\])  # .{9,}", parameter["help"]), parameter


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_ends_with_a_summary_three_exercises_and_the_way_on(path):
    last = nbformat.read(path, as_version=4).cells[-1].source
    assert last.index("## What you have seen") < last.index("## Exercises")
    assert re.findall(r"^(\d)\. \*\*", last, re.MULTILINE) == ["1", "2", "3"]
    assert ".ipynb)" in last.splitlines()[-1]


BLANK = re.compile(r"^(\w+) = None +# your answer$", re.MULTILINE)
FOLDED = re.compile(r"<details><summary>Answer</summary>\n\n```python\n(.*?)\n```", re.DOTALL)
# What a reader may write who has missed the point, for the questions of each notebook in their order
WRONG = {"01": ["(mean.square() + log_var.exp() - 1 - log_var).sum(1)",
                "rate * sum(p.grad.square().sum() for p in pupil.parameters())"],
         "02": ['each["decoder.4.weight"].mean(0).square()', '"more"', '(fim["encoder.0.bias"] == 0).float().mean()'],
         "03": ["784 / 2", "-(p.mean(0) * p.mean(0).log()).sum()"], "04": ["127.5", "latent_dim"],
         "05": ["1.96 * p.std()", "share.diagonal().mean()"]}


def filled(path, answers):
    """A notebook with these answers in the places of its blanks, and each exercise's code in a cell of its own below."""
    notebook = nbformat.read(path, as_version=4)
    asked = [cell for cell in notebook.cells if BLANK.search(cell.source)]
    for cell, options in zip(asked, answers, strict=True):
        place = notebook.cells.index(cell)
        for answer in options:
            tried = copy.deepcopy(cell)
            tried.source = BLANK.sub(lambda blank, answer=answer: f"{blank[1]} = {answer}", cell.source)
            notebook.cells.insert(place, tried)
        notebook.cells.remove(cell)
    blocks = re.findall(r"```python\n(.*?)```", notebook.cells[-1].source, re.DOTALL)
    notebook.cells += [nbformat.v4.new_code_cell(textwrap.dedent(block)) for block in blocks]
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
    return notebook


def folded(path):
    """The answers that lie folded below a notebook's questions, as code: each in the cell that follows its question."""
    cells = nbformat.read(path, as_version=4).cells
    found = []
    for cell, after in itertools.pairwise(cells):
        if blank := BLANK.search(cell.source):
            name, answer = FOLDED.match(after.source)[1].split(" = ", 1)
            assert name == blank[1]
            found.append(answer)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_questions_tell_a_blank_a_wrong_and_the_folded_answer_and_the_code_of_the_exercises_runs(series, tmp_path, path):
    answers = folded(path)
    assert 2 <= len(answers) <= 3
    options = [("None", wrong, answer) for wrong, answer in zip(WRONG[path.stem[:2]], answers, strict=True)]
    notebook = filled(path, [reversed(three) for three in options])
    exercises = len(notebook.cells) - len(nbformat.read(path, as_version=4).cells) - 2 * len(answers)
    assert exercises == (0 if path == NOTEBOOKS[2] else 3)                  # notebook 3's change a parameter
    nbformat.write(notebook, tmp_path / path.name)
    said = re.findall(r"^Right: |^Not yet right: |^Not answered yet: ",
                      text(run(tmp_path / path.name, series[0], **BUDGETS[path.stem[:2]])), re.MULTILINE)
    assert said == ["Not answered yet: ", "Not yet right: ", "Right: "] * len(answers)


@pytest.mark.slow
def test_the_folded_answers_are_right_of_other_models_surrogates_and_digits(tmp_path, digits):
    """With two latents, 3 and 8 to mean 7, and other budgets."""
    choices = {"01": {"latent_dim": 2, "steps": 300}, "02": {"n_samples": 1000},
               "03": {"forget": [3, 8], "surrogate": 7, "steps": 60, "remember": "replay"},
               "04": {"forget": [3, 8], "n_per_class": 60}, "05": {"forget": [3, 8]}}
    for path in NOTEBOOKS:
        nbformat.write(filled(path, [[answer] for answer in folded(path)]), tmp_path / path.name)
        said = text(run(tmp_path / path.name, tmp_path, **choices[path.stem[:2]]))
        assert said.count("Right: ") == len(folded(path)) and "Not yet right" not in said, path.stem
