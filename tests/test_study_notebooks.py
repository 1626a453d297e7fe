"""The five studies: what they ask with full = True is what the released logs hold; their cells and questions."""

import re

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from cells import code, execute
from conftest import REPOSITORY

import amnesia
from amnesia.checkpoints import RELEASED
from amnesia_studies import compare, experiment, logs
from amnesia_studies.tables import released

PATHS = sorted((REPOSITORY / "notebooks" / "studies").glob("[0-9]*_*.ipynb"))
STUDIES = [path.stem for path in PATHS]


def text(path, kind):
    """The sources of a notebook's cells of one kind."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """{class: one Experiment of it, read once}, in a workspace whose logs are the released ones."""
    workspace = tmp_path_factory.mktemp("workspace")
    (workspace / "checkpoints").mkdir()
    for log in RELEASED.glob("*.jsonl"):
        (workspace / "checkpoints" / log.name).symlink_to(log)
    return {kind: kind(str(workspace), "MNIST", "cpu") for kind in (experiment.Experiment, experiment.DiffusionExperiment)}


def no_run(*_, **settings):
    raise AssertionError(f"a run that no released log holds: {settings}")


@pytest.fixture
def asked(kinds, monkeypatch):
    """Runs raise, what is made besides is a stand-in; a list of the sizes of the grids that a notebook asked for."""
    sizes = []

    def sweep(run, grid, log, n_jobs, **more):
        grid = list(grid)
        sizes.append(len(grid))
        return logs.sweep(run, grid, log, 1, **more)

    for kind, made in kinds.items():
        monkeypatch.setattr(experiment, kind.__name__, lambda *_, made=made, **__: made)
        monkeypatch.setattr(kind, "forget", lambda self, *_, **__: self.original)
    monkeypatch.setattr(experiment, "sweep", sweep)
    monkeypatch.setattr(logs, "quietly", no_run)
    monkeypatch.setattr(amnesia, "png", plt.close)
    monkeypatch.setattr(amnesia, "show", lambda *_, **__: None)
    return sizes


def run(stem, until="", **parameters):
    """What a study defines, run here with full = True."""
    return execute(code(f"studies/{stem}"), until, full=True, n_jobs=1, **parameters)


@pytest.mark.mnist                                          # a log answers for the data that it was made with
@pytest.mark.parametrize("stem", STUDIES[:3])
def test_the_whole_grid_is_answered_by_the_released_logs(stem, asked, monkeypatch):
    monkeypatch.setattr("amnesia_studies.attacks.invert", lambda *_, **__: torch.zeros(10))    # of a run outside all logs
    monkeypatch.setattr("amnesia_studies.scoring.look_at", lambda *_: {"share": [0.0] * 10, "contrast": [0.0] * 10})
    names = run(stem)
    assert sum(asked) > 100 and names["runs"]["record"].map(lambda record: "result" in record).all()
    assert (names["runs"].groupby("log").size() > 5).all()


@pytest.mark.mnist
def test_the_diffusion_models_grid_is_answered_and_the_rest_is_named(asked):
    names = run("4_elsewhere", until="MIX =")
    assert sum(asked) == (released()["original"] == "diffusion").sum()
    page = "\n".join(text(PATHS[3], "markdown"))
    for other in names["runs"].query("log == 'springs'")["original"].unique():
        assert other.startswith("FashionMNIST") and "`full` does not repeat them" in page


def test_a_row_of_ones_own_is_what_no_log_holds(asked, monkeypatch):
    calls = {}
    for name in ("compare", "board", "rebuild"):
        monkeypatch.setattr(compare, name, lambda *args, name=name, **options: calls.update({name: (args, options)}))
    run("5_yours", until="compare(average")
    (method,), options = calls["compare"]
    assert method.__name__ == "average" and options["seeds"] == (1, 2, 3) and options["scale"] == 1.0
    assert "are in no released log" in text(PATHS[4], "markdown")[0]


@pytest.mark.parametrize("path", PATHS, ids=STUDIES)
def test_a_study_opens_with_its_answer_and_asks_two_questions(path):
    cells, words = text(path, "code"), text(path, "markdown")
    assert all(len(cell.splitlines()) <= 20 for cell in cells if not cell.startswith("#@title"))
    answer = re.search(r"\*\*The answer\.\*\* (.*)", words[0])[1]
    assert "**The question.**" in words[0] and len(re.findall(r"[.?!](?= [A-Z`]|$)", answer)) == 3
    blanks = [cell for cell in cells if re.search(r"= None  # your answer", cell)]
    assert len(blanks) == 2 and all("check(" in cell for cell in blanks)
    assert sum("<summary>Answer</summary>" in cell for cell in words) == 2
    shown = [cell for cell in cells if "show(png(" in cell or "display(" in cell]
    assert "show(png(" in shown[0]                          # the picture comes before any table


def test_the_page_is_short_and_its_pictures_are_small():
    page = (REPOSITORY / "notebooks" / "studies" / "README.md").read_text()
    prose = re.sub(r"<!-- studies.*<!-- end of studies -->|<[^>]*>|\]\([^)]*\)", " ", page, flags=re.S)
    assert len(prose.split()) <= 900
    for name in re.findall(r'src="([^"]+)"', page):
        assert (REPOSITORY / "notebooks" / "studies" / name).stat().st_size < 100_000
