"""What a reader may set: what is accepted runs to the end, and what is refused is refused by the parameter's name."""

import re

import nbformat
import numpy as np
import papermill
import pytest
import torch
from cells import STEMS, run_here
from conftest import REPOSITORY

from amnesia import Diverged, Stage, Workspace, WorkspaceError, check_parameters
from amnesia.parameters import CHOICES, RANGES, labels_of

NOTEBOOKS = sorted((REPOSITORY / "notebooks").rglob("[0-9]*_*.ipynb"))


@pytest.mark.slow
@pytest.mark.usefixtures("with_few", "no_array_of_a_tensor")
@pytest.mark.parametrize("parameters", [
    {"steps": 1, "batch_size": 1, "latent_dim": 1, "n_samples": 1, "n_per_class": 2, "seed": 2**63 - 1, "learning_rate": 1e-12,
     "forget": np.array([0, 3])},
    {"steps": 9, "batch_size": 700, "latent_dim": 128, "n_samples": 501, "n_per_class": 3, "lam": 0, "gamma": 0, "dropout": 0.99,
     "weight_decay": 100, "forget": [1, 2, 3, 4, 5, 6, 7, 8, "9"], "surrogate": "0"}], ids=["the least", "the most"])
def test_the_ends_of_the_ranges_go_through_all_five(parameters, tmp_path):
    for stem in STEMS:
        run_here(stem, "" if parameters["steps"] == 1 else "stage.save(", workspace=str(tmp_path), **parameters)
    made = {path.name.split(".")[0].split("-")[0] for path in (tmp_path / "checkpoints").glob("[a-z]*") if path.suffix != ".py"}
    assert made == {"cvae", "fim", "amnesiac", "samples", "evaluation"}


@pytest.mark.usefixtures("with_few")
def test_a_rate_at_the_upper_end_diverges_in_a_sentence(tmp_path):
    with pytest.raises(Diverged, match="The loss diverged at step"):
        run_here("01_train_cvae", "stage.save(", workspace=str(tmp_path), steps=20, batch_size=10, learning_rate=1e3)
    assert not (tmp_path / "checkpoints" / "cvae.pt").exists()


@pytest.mark.parametrize("name", [*RANGES, *CHOICES])
def test_a_value_is_one_of_its_own_or_refused_by_name(name):
    if name in RANGES:
        least, most = good = RANGES[name]
        bad = [least - 1, most * 2, float("nan"), float("inf"), True, None, "3", "0,3", "1e-4", [least], np.int64(least),
               torch.tensor(least), *([float(least)] if isinstance(least, int) else [])]
    else:
        good, bad = CHOICES[name], ["FALSE", "no", "", 0, 1, None, np.True_, "distill"]
    for value in good:
        check_parameters(**{name: value})
    for value in bad:
        with pytest.raises(ValueError, match=f"^{name}="):
            check_parameters(**{name: value})


def test_labels_are_taken_as_people_write_them():
    classes = [*"01234567", "Trouser", "dress"]
    for asked in ([3, 9], (9, 3), {3, 9}, np.array([3, 9]), torch.tensor([9, 3]), [3, "Dress"], [np.int64(9), "3"]):
        assert labels_of(asked, classes) == [3, 9] and all(type(label) is int for label in labels_of(asked, classes))
    assert labels_of(8, classes) == labels_of("trouser", classes) == [8]
    assert labels_of(["a"], ("A", "a")) == [1]                          # as written, before it is taken in another case
    for bad in ([10], [-1], 3.0, [2.7], True, None, "[3, 8]", "hat", [[3]], {3: 8}, np.array([True]), [3, None]):
        with pytest.raises(ValueError, match="forget="):
            labels_of(bad, classes)
    with pytest.raises(ValueError, match="-y"):                         # of papermill
        labels_of("[3, 8]", classes)


@pytest.mark.parametrize(("stem", "parameters", "name"), [
    (STEMS[2], {"forget": []}, "forget="), (STEMS[2], {"forget": [*range(10)]}, "forget="),
    (STEMS[2], {"surrogate": 0}, "surrogate=0"), (STEMS[2], {"surrogate": "grey"}, "surrogate="),
    (STEMS[2], {"remember": "replays"}, "remember="), (STEMS[2], {"lam": "0,3"}, "lam='0,3'"),
    (STEMS[1], {"model": "cave.pt"}, r"cave\.pt is neither in"),
    (STEMS[0], {"dataset": "Omniglott"}, "dataset="), (STEMS[3], {"dataset": "FashionMNIST"}, "cvae.pt|dataset="),
    (STEMS[0], {"workspace": 5}, "workspace=5"), (STEMS[0], {"workspace": None}, "workspace=None"),
    (STEMS[0], {"device": "abacus"}, "device='abacus'"), (STEMS[0], {"seed": 0.5}, "seed=0.5")])
def test_a_bad_parameter_stops_before_any_work(tmp_path, stem, parameters, name):
    with pytest.raises((ValueError, WorkspaceError), match=name):
        run_here(stem, "# This stage", **{"workspace": str(tmp_path), **parameters})
    assert not [*tmp_path.rglob("*.pt")]


def test_a_models_name_may_end_as_its_file_does(tmp_path):
    stage = run_here(STEMS[1], "# This stage", workspace=str(tmp_path), model="cvae.pt")["stage"]
    assert (stage.model, stage.path.name) == ("cvae", "fim-cvae.pt")


def test_every_parameter_is_explained_by_papermill_and_is_a_field_in_colab():
    """What `papermill --help-notebook` prints: the comment on the parameter's line, Colab's mark first."""
    for path in NOTEBOOKS:
        cell = next(cell for cell in nbformat.read(path, as_version=4).cells if "parameters" in cell.metadata.get("tags", []))
        found = papermill.inspect_notebook(path)
        assert list(found) == [line.split(" = ")[0] for line in cell.source.splitlines() if line]
        for parameter in found.values():
            assert re.fullmatch(r"@param (\{.*\}|\[.*\])  # .{9,}", parameter["help"]), (path, parameter)


def test_inputs_that_do_not_belong_together_are_refused(tmp_path, cvae):
    """One's own CVAE beside the released FIM: the stage names the notebook to run. A model of other pictures: which those are."""
    own = Stage(Workspace(tmp_path), "cvae.pt", {"dataset": "MNIST"})
    own.save(state=cvae.state_dict(), config=cvae.config, metrics={})
    with pytest.raises(WorkspaceError, match=r"fim-cvae\.pt was not made from this.*02_compute_fim"):
        run_here(STEMS[2], "# This stage", workspace=str(tmp_path))
    with pytest.raises(WorkspaceError, match=r"samples-0\.pt|amnesiac-0\.pt"):
        run_here(STEMS[4], "# This stage", workspace=str(tmp_path))


