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
import textwrap

import nbformat
import PIL.Image
import pytest
import torch
from cells import STEMS, code, execute, makes, run_here, sources
from conftest import BUDGETS, RELEASED, REPOSITORY

from amnesia import WorkspaceError
from amnesia.figures import moving_png

NOTEBOOKS = [REPOSITORY / "notebooks" / f"{stem}.ipynb" for stem in STEMS]
ALL = [*NOTEBOOKS, *sorted((REPOSITORY / "notebooks" / "studies").glob("*.ipynb"))]
of_all = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def pictures(notebook):
    """The bytes of every picture that a notebook shows."""
    return [base64.b64decode(output["data"]["image/png"]) for output in outputs(notebook)
            if "image/png" in output.get("data", {})]


def frames(picture):
    """How many frames a PNG has."""
    return getattr(PIL.Image.open(io.BytesIO(picture)), "n_frames", 1)


def load(workspace, name):
    path = workspace / "checkpoints" / name
    return json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)


@pytest.mark.slow
def test_the_five_make_learn_forget_and_score_what_they_say(series):
    workspace, executed = series
    cvae, fim, amnesiac, samples, result = (load(workspace, name) for name in (
        "cvae.pt", "fim-cvae.pt", "amnesiac-0.pt", "samples-0.pt", "evaluation-0.json"))
    total = cvae["metrics"]["test_reconstruction"] + cvae["metrics"]["test_kl"]
    assert total[0] > 190 and total[-1] < 160                           # nats per image; 206.6 is the average image alone
    assert {k: v.shape for k, v in fim["state"].items()} == {k: v.shape for k, v in cvae["state"].items()}
    assert all((value >= 0).all() for value in fim["state"].values())
    history = amnesiac["metrics"]
    before, after = history["frames"][[0, -1]].float()
    assert after[0].std((1, 2)).mean() < 0.8 * before[0].std((1, 2)).mean()         # dissolving, and the others are not
    assert (after[1:] - before[1:]).abs().mean() < (after[0] - before[0]).abs().mean()
    assert history["P"].shape == history["H"].shape == history["snapshot_steps"].shape and history["P"][-1] < history["P"][0]
    twins = samples["state"]
    assert {k: (v.dtype, tuple(v.shape)) for k, v in twins.items()} == dict.fromkeys(
        ("original", "amnesiac"), (torch.uint8, (10, 50, 28, 28)))
    difference = (twins["original"].int() - twins["amnesiac"].int()).abs().float().mean((1, 2, 3))
    assert difference[0] > difference[1:].max()
    assert result["amnesiac"]["forgotten_elbo"] < result["original"]["forgotten_elbo"]
    assert all(sum(row) == 50 for block in ("original", "amnesiac") for row in result[block]["confusion"])
    assert {"real", "grey", "noise", "kept_frechet_floor"} <= result["reference"].keys()
    lineages = [file["lineage"]["cvae.pt"] for file in (fim, amnesiac, samples, result)]
    assert set(lineages) == {hashlib.sha256((workspace / "checkpoints" / "cvae.pt").read_bytes()).hexdigest()}
    assert lineages[0][:12] in text(executed["05"])                     # the chain, printed
    # what is shown: a picture for each call, of which those of the runs move; and no widgets, which GitHub calls invalid
    for number, stem in zip(executed, STEMS, strict=True):
        shown = pictures(executed[number])
        assert len(shown) == sum(len(re.findall(r"^ *show\(", source, re.MULTILINE)) for source in sources(stem)) > 0
        assert "widget" not in str(outputs(executed[number]))
        assert [frames(picture) > 20 for picture in shown].count(True) == (number in ("01", "03"))
    moving = next(picture for picture in pictures(executed["01"]) if frames(picture) > 1)
    assert moving_png((workspace / "figures" / "cvae_training.gif").read_bytes()) == moving
    assert {path.name for path in (workspace / "figures").glob("[a-z]*")} == {
        "cvae_training.gif", "forgetting-0.gif", "strip-0.png", "comparison-0.png"}


@pytest.fixture
def finished(series, tmp_path):
    """A copy of the series' workspace, to go on in."""
    return shutil.copytree(series[0], tmp_path / "finished")


@pytest.mark.slow
@pytest.mark.usefixtures("with_few")
def test_several_labels_another_label_as_surrogate_and_terms_switched_off(finished):
    """3 and 8 are to look like 7, with no penalty and nothing to remember by: quick to learn, ruinous for the rest."""
    run_here(STEMS[2], workspace=str(finished), forget=[8, 3], surrogate=7, lam=0.0, gamma=0.0, steps=300, batch_size=64,
             learning_rate=1e-2)
    for stem in STEMS[3:]:
        run_here(stem, workspace=str(finished), forget=[3, 8], n_per_class=50)
    terms = load(finished, "amnesiac-3-8.pt")["metrics"]["terms"]
    assert terms["remember"].abs().sum() == terms["protect"].abs().sum() == 0
    result = load(finished, "evaluation-3-8.json")
    before, after = (sum(result[title]["confusion"][asked][7] for asked in (3, 8)) for title in ("original", "amnesiac"))
    assert after > 30 and after > 3 * before  # of 100


@pytest.mark.slow
@pytest.mark.usefixtures("with_few")
def test_a_model_that_has_forgotten_forgets_one_more(tmp_path):
    """From amnesiac-0.pt by its own FIM to amnesiac-0-3.pt; 0 is neither forgotten again nor scored as kept, but by itself."""
    choices = {"workspace": str(tmp_path), "model": "amnesiac-0", "forget": [3], "steps": 20, "n_samples": 500,
               "n_per_class": 50}
    for stem in STEMS[1:]:
        run_here(stem, "stage.save(", **choices)
    made = {path.name for path in (tmp_path / "checkpoints").glob("[a-z]*")}
    assert made == {"fim-amnesiac-0.pt", "amnesiac-0-3.pt", "samples-0-3.pt", "evaluation-0-3.json"}
    result = load(tmp_path, "evaluation-0-3.json")["amnesiac"]
    hits = [result["confusion"][digit][digit] for digit in (1, 2, 4, 5, 6, 7, 8, 9)]
    assert result["kept_accuracy"] == pytest.approx(sum(hits) / 400)
    assert result["before_forgotten_share"] == result["confusion"][0][0] / 50 and result["before_forgotten_probability"] < 0.3
    with pytest.raises(ValueError, match=r"has forgotten .*0.* already"):
        run_here(STEMS[2], "# This stage", **{**choices, "forget": [0]})
    with pytest.raises(WorkspaceError, match=r"amnesiac-0-3\.pt was not made from this"):
        run_here(STEMS[3], "# This stage", **{**choices, "model": "cvae", "forget": [0, 3]})


OWN = '''import torch
from torch import nn


class CVAE(nn.Module):
    """A reader's own: whole numbers in its state, by batch normalisation; the label in an embedding."""

    def __init__(self, latent_dim=4, shape=(1, 28, 28), classes=10):
        super().__init__()
        self.latent_dim, pixels = latent_dim, shape[0] * shape[1] * shape[2]
        self.config = {"latent_dim": latent_dim, "shape": [*shape], "classes": classes}
        self.label, self.told, self.last = nn.Embedding(classes, pixels), nn.Embedding(classes, 50), nn.Linear(50, pixels)
        self.read = nn.Sequential(nn.BatchNorm1d(pixels), nn.Linear(pixels, 2 * latent_dim))
        self.draw = nn.Sequential(nn.Linear(latent_dim, 50), nn.BatchNorm1d(50), nn.ReLU())

    def encode(self, x, y):
        return self.read(x + self.label(y.argmax(1))).chunk(2, 1)

    def decode(self, z, y):
        return self.last(self.draw(z) + self.told(y.argmax(1)))

    @torch.no_grad()
    def generate(self, labels, z=None):
        z = torch.randn(len(labels), self.latent_dim) if z is None else z
        return self.decode(z, nn.functional.one_hot(labels, 10).float()).sigmoid()
'''


def with_model(source):
    """01's cells with this one in the place of its model's."""
    return [source if "class CVAE(" in cell else cell for cell in code(STEMS[0])]


@pytest.mark.slow
@pytest.mark.usefixtures("with_few")
def test_a_model_of_ones_own_with_whole_numbers_in_its_state_goes_through_all_five(tmp_path):
    """31.1: no other cell or file is edited; the source of the class is beside the file, and in every lineage."""
    budget = {"workspace": str(tmp_path), "steps": 30, "n_samples": 200, "n_per_class": 20}
    cells = with_model(OWN)
    execute(makes([cells[0], "import torch.nn.functional as F", *cells[1:]]), "stage.save(", **budget)
    for stem in STEMS[1:]:
        run_here(stem, "stage.save(", **budget)
    source, = (tmp_path / "checkpoints").glob("model-*.py")
    assert source.read_text().rstrip() == OWN.rstrip()
    assert load(tmp_path, "cvae.pt")["state"]["draw.1.num_batches_tracked"] > 0
    for name in ("cvae.pt", "fim-cvae.pt", "amnesiac-0.pt", "samples-0.pt", "evaluation-0.json"):
        assert source.name in load(tmp_path, name)["lineage"], name
    source.write_text(OWN + "# other")
    with pytest.raises(WorkspaceError, match=source.name):
        run_here(STEMS[1], "build(CVAE", **budget)


@pytest.mark.usefixtures("with_few")
@pytest.mark.parametrize("source", [OWN.replace("import torch\nfrom torch import nn\n", ""),
                                    OWN.replace("self.config", "self.choices")], ids=["imports elsewhere", "no config"])
def test_a_model_that_no_other_notebook_could_build_is_refused_before_it_is_trained(tmp_path, source):
    cells = with_model(source)
    with pytest.raises(WorkspaceError, match="CVAE"):
        execute([cells[0], "import torch\nimport torch.nn.functional as F\nfrom torch import nn", *makes(cells[1:])],
                "stage.save(", workspace=str(tmp_path), steps=10**6)
    assert not [*tmp_path.rglob("*.pt")]


BLANK = re.compile(r"^(\w+) = None +# your answer.*$", re.MULTILINE)
FOLDED = re.compile(r"<details><summary>Answer</summary>\n\n```python\n(.*?)\n```", re.DOTALL)
SAID = re.compile(r"^(Right|Not yet right|Not answered yet): ", re.MULTILINE)


def folded(stem):
    """The answers that lie folded below a notebook's questions, as code: each in the cell that follows its question."""
    found = []
    for cell, after in itertools.pairwise(nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4).cells):
        if blank := BLANK.search(cell.source):
            found.append(FOLDED.match(after.source)[1])
            assert f"{blank[1]} = " in found[-1] or f"def {blank[1]}(" in found[-1]
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("with_few")
@pytest.mark.parametrize("stem", STEMS)
def test_a_question_tells_a_blank_a_wrong_and_the_folded_answer_and_the_code_of_the_exercises_runs(finished, capsys, stem):
    answers, cells = folded(stem), []
    assert answers
    left = iter(answers)
    for source in code(stem):
        blank = BLANK.search(source)
        cells += [source, BLANK.sub(f"{blank[1]} = 'wrong'", source), source.replace(blank[0], next(left))] if blank else [source]
    last = nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4).cells[-1].source
    exercises = [textwrap.dedent(found) for found in re.findall(r"```python\n(.*?)```", last, re.DOTALL)]
    execute([*cells, *exercises], workspace=str(finished), **BUDGETS[stem[:2]])
    assert SAID.findall(capsys.readouterr().out) == ["Not answered yet", "Not yet right", "Right"] * len(answers)


@of_all
def test_what_is_committed_is_executed_clean_small_and_unanswered(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for output in outputs(notebook))
    assert "\r" not in text(notebook) and "widgets" not in notebook.metadata
    assert path.stat().st_size < 1_500_000 and max(map(len, pictures(notebook))) < 400_000
    assert "pyplot" not in "".join(cell.source for cell in cells)       # figures start from the project's style
    for cell in cells:
        if BLANK.search(cell.source):
            assert "".join(output.get("text", "") for output in cell.outputs).startswith("Not answered yet: "), cell.source


@of_all
def test_what_does_not_see_is_told(path):
    """Every stored picture is a PNG with its words, which are the code's; every column of a table has its heading."""
    for cell in nbformat.read(path, as_version=4).cells:
        patterns = ["".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".*"
                            for part in getattr(word.value, "values", [word.value]))
                    for word in (ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ())
                    if isinstance(word, ast.keyword) and word.arg == "alt"]
        for place, output in enumerate(cell.get("outputs", [])):
            if "image/png" in output.get("data", {}):
                alt, words = output.metadata["image/png"]["alt"], cell.outputs[place + 1].data
                assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG\r\n")
                assert output.data["text/plain"] == alt and words.keys() == {"text/html"}
                assert html.unescape(words["text/html"]).endswith(f">{alt}</p>")
                assert any(re.fullmatch(pattern, alt, re.DOTALL) for pattern in patterns), alt
        tables = cell.source + "".join(f"\n{output.data['text/markdown']}" for output in cell.get("outputs", [])
                                       if "text/markdown" in output.get("data", {}))
        for heading in re.findall(r"^\|(.*)\|\n\|[-:| ]+\|$", tables, re.MULTILINE):
            assert all(word.strip() for word in heading.split("|")), heading


def test_what_the_five_print_is_what_the_released_files_hold():
    """Whatever stands in both: F's total, the ends of the curves, twins' difference, every digest."""
    said = {path.stem[:2]: text(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    fim, amnesiac, samples = (torch.load(RELEASED / name, weights_only=True)
                                    for name in ("fim-cvae.pt", "amnesiac-0.pt", "samples-0.pt"))
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
        assert hashlib.sha256((RELEASED / name).read_bytes()).hexdigest().startswith(digest), name


@of_all
def test_the_code_that_a_notebook_lists_is_the_code(path):
    code = "\n".join(file.read_text() for file in (REPOSITORY / "notebooks").rglob("*.py"))
    for output in outputs(nbformat.read(path, as_version=4)):
        listing = output.get("data", {}).get("text/plain", "").strip()
        assert not listing.startswith(("def ", "class ", "@")) or listing in code, listing


def test_committed_figures_are_small():
    figures = [path for path in (REPOSITORY / "figures" / "released").rglob("*") if path.is_file()]
    most = {".png": 400_000, ".gif": 400_000, ".svg": 150_000, ".html": 4_000_000}
    assert figures and all(path.stat().st_size < most.get(path.suffix, 0) for path in figures)
