"""benchmarks/gpu.py, all of it on the CPU and in miniature."""

import json
import warnings

import gpu
import matplotlib.pyplot as plt
import pytest
import side_by_side
import torch
from clock import tick

import amnesia
from amnesia import Digits
from amnesia.storage import stage

pytestmark = pytest.mark.filterwarnings("ignore:__array_")  # matplotlib's, of tensors
WORK = "training", "Fisher information"


@pytest.fixture
def few(digits, monkeypatch):
    """Images in the place of every data set, few steps of everything, saved at each, and no process of its own."""
    small = [Digits(*(values[::len(values) // 300] for values in (part.images, part.labels)), part.name) for part in digits]
    whole = side_by_side.notebook
    tick(100, monkeypatch.setattr)

    def notebook(number, workspace, **parameters):
        return whole(number, workspace, **{**parameters, "steps": 3, "n_samples": 400, "n_per_class": 10, "device": "cpu"})

    for owner, name, value in (
            (amnesia, "load_digits", lambda dataset, folder, device: small), (amnesia, "grow", lambda digits, seed: digits),
            (amnesia, "png", lambda figure: plt.close(figure) or b""), (amnesia, "gif", lambda *_, **options: b""),
            (amnesia, "show", lambda *_, **options: None),
            (side_by_side, "notebook", notebook),
            (side_by_side, "loader", lambda: [(small[0].images[:256].view(-1, 1, 28, 28) / 255, small[0].labels[:256])]),
            (side_by_side, "device", lambda: "cpu"), (side_by_side, "IN_FLOAT32", {})):
        monkeypatch.setattr(owner, name, value)
    return small[0]


@pytest.mark.slow
def test_all_of_it_in_miniature(few):
    *_, result = gpu.measured(few, 30, (2, 2, 2, None), repeats=1)
    result = json.loads(json.dumps(result))
    assert result["checks"] == {work: {"repeated": True, "resumed": True} for work in WORK}
    table = gpu.table(result)
    assert all(f"| {stage} |" in table for stage in gpu.STAGES) and result["versions"]["hardware"] in table
    assert "training: the same values from the same seed, the same values when cut off and resumed." in table


@pytest.mark.slow
def test_a_run_that_resumes_to_other_values_is_found(few, monkeypatch):
    """As on a card whose random state is not put back."""
    monkeypatch.setattr(stage, "set_rng_state", lambda state, device: torch.manual_seed(1))
    checks, versions = gpu.checks(few, 30), gpu.versions() | {"cuda": None}
    assert checks == {work: {"repeated": True, "resumed": False} for work in WORK}
    assert "OTHER values when cut off" in gpu.table({"checks": checks, "stages": {}, "versions": versions})


def test_waits_are_those_that_torch_warns_of(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def work(times):
        for _ in range(times):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)  # torch's own words
        warnings.warn("something else", stacklevel=1)

    assert gpu.waits(work, 3) == 3 and modes == ["warn", "default"]


def test_without_a_card_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu, "pick_device", lambda device: (_ for _ in ()).throw(ValueError))
    with pytest.raises(SystemExit, match="no CUDA card here that works"):
        gpu.main()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("steps", [3, 4, 60])
def test_on_a_card_a_captured_run_is_the_plain_one_to_the_bit(digits, monkeypatch, steps):
    captured, train = gpu.train(digits[0].to("cuda"), steps), gpu.fit
    monkeypatch.setattr(gpu, "fit", lambda *arguments, **options: train(*arguments, **{**options, "capture": False}))
    assert all(torch.equal(a, b) for a, b in zip(captured, gpu.train(digits[0].to("cuda"), steps), strict=True))
