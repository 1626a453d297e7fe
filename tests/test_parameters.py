"""What the checks accept runs to the end, and what they refuse they refuse in a sentence that names the parameter."""

import nbformat
import numpy as np
import pytest
from cells import STEMS, run_here
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from amnesia.storage.parameters import RANGES, SWITCHES, check_parameters
from amnesia.training import Diverged

NOTEBOOKS = REPOSITORY / "notebooks"
ENDS = {  # of the ranges, and what lies just inside them; the longest ends would take days
    "the least of everything": {"steps": 1, "batch_size": 1, "latent_dim": 1, "n_samples": 1, "n_per_class": 2,
                                "seed": 2**63 - 1, "learning_rate": 1e-12, "forget": np.array([0, 3])},
    "few, and nearly all forgotten": {"steps": 9, "batch_size": 7, "latent_dim": 128, "n_samples": 501, "n_per_class": 3,
                                      "lam": 0, "gamma": 0, "forget": [1, 2, 3, 4, 5, 6, 7, 8, 9], "surrogate": np.int64(0)},
    "batches beyond the data": {"steps": 2, "batch_size": 20_000, "latent_dim": 2, "n_samples": 10, "n_per_class": 5,
                                "dropout": 0.99, "weight_decay": 1e3, "lam": 1e-3}}


@pytest.mark.slow
@pytest.mark.usefixtures("no_array_of_a_tensor")
@pytest.mark.parametrize("parameters", ENDS.values(), ids=ENDS.keys())
def test_the_ends_of_the_ranges_go_through_all_five(parameters, tmp_path):
    for stem in STEMS:
        run_here(stem, workspace=str(tmp_path), **parameters)
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(STEMS)


@pytest.mark.slow
def test_a_rate_at_the_upper_end_diverges_in_a_sentence(tmp_path):
    with pytest.raises(Diverged, match="The loss diverged at step"):
        run_here("01_train_cvae", workspace=str(tmp_path), steps=20, batch_size=10, learning_rate=1e3)
    assert not (tmp_path / "checkpoints" / "cvae.pt").exists()


numbers = st.integers(-10, 10**19) | st.floats() | st.booleans() | st.none() | st.text(max_size=3) | st.lists(st.integers())


@given(st.sampled_from(sorted(RANGES)), numbers | numbers.map(np.array))
def test_a_value_is_in_its_range_or_refused_by_name(name, value):
    least, most = RANGES[name]
    good = type(value) in ((int,) if isinstance(least, int) else (int, float)) and least <= value <= most
    if good:
        check_parameters(**{name: value})
    else:
        with pytest.raises(ValueError, match=rf"^{name}="):
            check_parameters(**{name: value})


@pytest.mark.parametrize(("name", "value", "says"), [
    ("steps", 2.0, "a whole number from 1 to 10,000,000."),
    ("learning_rate", "1e-4", "a number from 1e-12 to 1,000.0. This is text: YAML, and so papermill, takes 1e-4 for text "
                              "and 1.0e-4 for a number."),
    ("steps", np.int64(2), "a whole number from 1 to 10,000,000. Of NumPy's and torch's numbers, take steps.item().")],
    ids=["a fraction", "text", "NumPy's"])
def test_a_refusal_says_what_is_expected(name, value, says):
    with pytest.raises(ValueError) as caught:
        check_parameters(**{name: value})
    assert str(caught.value) == f"{name}={value!r}: expected {says}"


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["FALSE", "False", "no", "off", "", 0, 1, None, np.True_])
def test_a_switch_is_true_or_false_or_refused_by_name(name, value):
    check_parameters(**{name: True})
    check_parameters(**{name: False})
    with pytest.raises(ValueError, match=rf"^{name}={value!r}: expected True or False\.$"):
        check_parameters(**{name: value})


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.rglob("[0-9]*_*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_refuses_a_switch_that_is_text(path, tmp_path):
    """As papermill's -p hands over a no."""
    given = [name for name in SWITCHES if f"\n{name} = " in nbformat.read(path, as_version=4).cells[1].source]
    assert "use_drive" in given
    for name in given:
        with pytest.raises(ValueError, match=f"^{name}='no': expected True or False"):
            run_here(path.relative_to(NOTEBOOKS).with_suffix(""), workspace=str(tmp_path), **{name: "no"})
    assert not list(tmp_path.rglob("*.pt"))
