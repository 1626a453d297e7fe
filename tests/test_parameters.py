"""What a reader may set: what is accepted runs to the end, and what is refused is refused by the parameter's name."""

import re

import nbformat
import numpy as np
import papermill
import pytest
import torch
from cells import STEMS, run_here
from conftest import REPOSITORY

from amnesia import Stage, Workspace, WorkspaceError, check, check_parameters
from amnesia.parameters import CHOICES, RANGES, labels_of

NOTEBOOKS = sorted((REPOSITORY / "notebooks").rglob("[0-9]*_*.ipynb"))


@pytest.mark.slow
@pytest.mark.usefixtures("with_few")
@pytest.mark.parametrize("parameters", [
    {"steps": 1, "batch_size": 1, "latent_dim": 1, "n_samples": 1, "n_per_class": 2, "seed": 2**63 - 1, "learning_rate": 1e-12,
     "forget": np.array([0, 3])},
    {"steps": 9, "batch_size": 700, "latent_dim": 128, "n_samples": 501, "n_per_class": 3, "lam": 0, "gamma": 0, "dropout": 0.99,
     "weight_decay": 100, "forget": [1, 2, 3, 4, 5, 6, 7, 8, "9"], "surrogate": "0"}], ids=["the least", "the most"])
def test_the_ends_of_the_ranges_go_through_all_five(parameters, tmp_path):
    for stem in STEMS:
        names = run_here(stem, "" if parameters["steps"] == 1 else "stage.save(", workspace=str(tmp_path), **parameters)
        assert names["stage"].path.exists()


@pytest.mark.parametrize("name", [*RANGES, *CHOICES])
def test_a_value_is_one_of_its_own_or_refused_by_name(name):
    good, bad = CHOICES.get(name), ["FALSE", "no", "", 0, 1, None, np.True_, "distill"]
    if name in RANGES:
        least, most = good = RANGES[name]
        bad = [least - 1, most * 2, float("nan"), float("inf"), True, None, "3", "1e-4", [least], np.int64(least),
               torch.tensor(least), *([float(least)] if isinstance(least, int) else [])]
    for value in good:
        check_parameters(**{name: value})
    for value in bad:
        with pytest.raises(ValueError, match=f"^{name}="):
            check_parameters(**{name: value})


def test_labels_are_taken_as_people_write_them(tmp_path):
    classes = [*"01234567", "Trouser", "Dress"]
    for asked in ([3, 9], (9, 3), {3, 9}, np.array([3, 9]), torch.tensor([9, 3]), [3, "dress"], [np.int64(9), "3"]):
        assert labels_of(asked, classes) == [3, 9]
    assert labels_of(8, classes) == labels_of("Trouser", classes) == [8]
    assert labels_of(["a"], ("a", "A")) == labels_of([0], ("3", "0")) == [0]            # as written, before anything else
    for bad in ([10], [-1], 3.0, [2.7], True, None, "[3, 8]", "hat", [[3]], {3: 8}, np.array([True]), [3, None]):
        with pytest.raises(ValueError, match="forget="):
            labels_of(bad, classes)
    stage = run_here("03", "begin(", workspace=str(tmp_path), forget=("8", 3), surrogate="7")["stage"]
    assert (stage.record["settings"]["forget"], stage.record["settings"]["surrogate"], stage.tag) == ([3, 8], 7, "3-8")


@pytest.mark.parametrize(("number", "parameters", "said"), [
    ("03", {"forget": []}, "forget="), ("03", {"forget": [*range(10)]}, "forget="), ("03", {"surrogate": 0}, "surrogate=0"),
    ("03", {"surrogate": "grey"}, "surrogate="), ("03", {"lam": "0,3"}, "lam='0,3'"), ("02", {"model": "cave"}, r"cave\.pt is"),
    ("01", {"dataset": "Omniglott"}, "dataset="), ("01", {"device": "abacus"}, "device='abacus'")])
def test_a_bad_parameter_stops_before_any_work(tmp_path, number, parameters, said):
    with pytest.raises((ValueError, WorkspaceError), match=said):
        run_here(number, "begin(", workspace=str(tmp_path), **parameters)
    assert not [*tmp_path.rglob("*.pt")]


def test_inputs_that_do_not_belong_together_are_refused(tmp_path, cvae):
    """One's own CVAE, by its file's name, beside the released files of another: the stage names the notebook to run."""
    own = Stage(Workspace(tmp_path), "cvae.pt", {"dataset": "MNIST"}).save(state=cvae.state_dict(), config=cvae.config)
    stage = run_here("02", "begin(", workspace=str(tmp_path), model="cvae.pt")["stage"]
    assert stage.path.name == "fim-cvae.pt" and stage.record["lineage"] == {"cvae.pt": own.digest}
    for number, said in (("03", "fim-cvae.*Run 02"), ("04", "amnesiac-0.*Run 03"), ("05", "amnesiac-0.*Run 03")):
        with pytest.raises(WorkspaceError, match=said):
            run_here(number, "begin(", workspace=str(tmp_path))


def test_every_parameter_is_explained_by_papermill_and_is_a_field_in_colab():
    """What `papermill --help-notebook` prints: the comment on the parameter's line, Colab's mark first."""
    for path in NOTEBOOKS:
        cell = next(cell for cell in nbformat.read(path, as_version=4).cells if "parameters" in cell.metadata.get("tags", []))
        found = papermill.inspect_notebook(path)
        assert list(found) == [line.split(" = ")[0] for line in cell.source.splitlines() if line]
        for parameter in found.values():
            assert re.fullmatch(r"@param (\{.*\}|\[.*\])  # .{9,}", parameter["help"]), (path, parameter)


@pytest.mark.parametrize(("answer", "truth", "said"), [
    ("less", "less", "Right"), ("more", "less", "Not yet right"), (None, 1.0, "Not answered yet"), ("less", 1.0, "Not yet right"),
    (543.4, torch.tensor(543.427), "Right"), (543.4, 540.0, "Not yet right"), (1, 0, "Not yet right"), (-0.0, 0.0, "Right"),
    (torch.ones(3, requires_grad=True), torch.ones(3), "Right"), (torch.ones(2), torch.ones(3), "Not yet right"),
    (lambda x: 2 * x, 2.0, "Not yet right")])
def test_a_reader_s_answer_is_right_or_not_yet_or_missing_and_nothing_is_raised(capsys, answer, truth, said):
    check(answer, truth, "so it is.")
    assert capsys.readouterr().out.startswith(f"{said}: ")
