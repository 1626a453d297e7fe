"""The five studies: what they ask with full = True is what the released logs hold; their cells and questions."""

import nbformat
import pytest
import torch
from cells import code, execute
from conftest import RELEASED, REPOSITORY

from amnesia_studies import compare, experiment, logs
from amnesia_studies.tables import released

PATHS = sorted((REPOSITORY / "notebooks" / "studies").glob("[0-9]*_*.ipynb"))


def text(path, kind):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """{class: one Experiment of it, read once}, whose logs are the released ones."""
    kinds = experiment.Experiment, experiment.DiffusionExperiment
    made = {kind: kind(str(tmp_path_factory.mktemp("workspace")), "MNIST", "cpu") for kind in kinds}
    for one in made.values():
        one.store.checkpoints = RELEASED
    return made


@pytest.fixture
def asked(kinds, no_figures, monkeypatch):
    """A run that no log holds raises, other models are a stand-in; a list of the sizes of the grids that a notebook asked for."""
    sizes = []

    def sweep(run, grid, log, n_jobs, **more):
        sizes.append(len(grid))
        return logs.sweep(run, grid, log, 1, **more)

    for kind, made in kinds.items():
        monkeypatch.setattr(experiment, kind.__name__, lambda *_, made=made, **__: made)
        monkeypatch.setattr(kind, "forget", lambda self, *_, **__: self.original)
    monkeypatch.setattr(experiment, "sweep", sweep)
    monkeypatch.setattr(logs, "quietly", None)
    monkeypatch.setattr("amnesia_studies.attacks.invert", lambda *_, **__: torch.zeros(10))    # of a run outside all logs
    monkeypatch.setattr("amnesia_studies.scoring.look_at", lambda *_: {"share": [0.0] * 10, "contrast": [0.0] * 10})
    return sizes


def run(number, until="", **parameters):
    """What a study defines, run here with full = True."""
    return execute(code(f"studies/{PATHS[number - 1].stem}"), until, full=True, n_jobs=1, **parameters)


@pytest.mark.mnist                                          # a log answers for the data that it was made with
@pytest.mark.parametrize(("number", "until"), [(1, ""), (2, ""), (3, ""), (4, "MIX =")])
def test_the_whole_grid_is_answered_by_the_released_logs(number, until, asked):
    runs = run(number, until)["runs"]
    assert sum(asked) > 100 if number < 4 else sum(asked) == (released()["original"] == "diffusion").sum()
    assert runs["record"].map(lambda record: "result" in record).all() and runs.groupby("log").size().min() > 3


def test_a_row_of_ones_own_is_asked_for_at_full_length(asked, monkeypatch):
    calls = {}
    monkeypatch.setattr(compare, "compare", lambda *args, **options: calls.update(options, method=args[0]))
    run(5, until="compare(average")
    assert calls["method"].__name__ == "average" and (calls["seeds"], calls["scale"]) == ((1, 2, 3), 1.0)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_study_opens_with_its_answer_and_asks_two_questions(path):
    cells, words = text(path, "code"), text(path, "markdown")
    assert all(len(cell.splitlines()) <= 20 for cell in cells if not cell.startswith("#@title"))
    assert "**The question.**" in words[0] and "**The answer.**" in words[0]
    blanks = [cell for cell in cells if "= None  # your answer" in cell]
    assert len(blanks) == 2 == sum("<summary>Answer</summary>" in cell for cell in words)
    assert all("check(" in cell for cell in blanks)
    assert "show(png(" in next(cell for cell in cells if "show(png(" in cell or "display(" in cell)     # before any table
