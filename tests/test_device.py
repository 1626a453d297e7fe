"""What the processor can do: a device that works, and quick matrix products that leave the user's own settings alone."""

import pytest
import torch

from amnesia import pick_device
from amnesia.training import quick_products, rng_state, set_rng_state


def test_a_gpu_that_is_there_and_fails_is_said_and_the_cpu_is_taken(monkeypatch, capsys):
    """Every operation fails, then only the first real kernel; on a machine without a GPU, both are stood in for."""
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cuda in ("no such device", "meta"):  # "meta" makes a tensor, and has nothing to answer .item() with
        monkeypatch.setattr(torch, "ones", lambda *size, device, cuda=cuda: ones(size, device=cuda))
        assert pick_device("auto") == torch.device("cpu")
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and "cuda" in said and "going on with the CPU" in said
        with pytest.raises(ValueError, match="device='cuda': not available here"):
            pick_device("cuda")


def test_torch_is_put_back_to_its_own_defaults():
    """Whatever a startup file chose: the notebooks make float32 tensors on the CPU and take gradients."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    try:
        pick_device("cpu")
        assert torch.get_default_dtype() == torch.float32 and torch.zeros(1).device == torch.device("cpu")
        assert torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)


def test_a_device_by_name_or_as_torch_has_it(capsys):
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    for unusable in ("abacus", torch.device("meta")):
        with pytest.raises(ValueError, match="device="):
            pick_device(unusable)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_the_random_state_is_that_of_the_device_in_use(monkeypatch, name):
    """With two cards, not that of the first; resumed on a device of another kind, only the CPU's."""
    states, device = {"cuda:0": torch.ones(1), "cuda:1": torch.zeros(1), "mps": torch.zeros(1)}, torch.device(name)
    for kind in ("cuda", "mps"):
        def get(card="cuda:0" if kind == "cuda" else kind):
            return states[str(card)]

        def put(state, card="cuda:0" if kind == "cuda" else kind):
            states[str(card)] = state
        monkeypatch.setattr(getattr(torch, kind), "get_rng_state", get)
        monkeypatch.setattr(getattr(torch, kind), "set_rng_state", put)
    saved = rng_state(device)
    states[name] = torch.tensor([5.0])
    set_rng_state(saved, torch.device("cpu"))
    assert states[name] == 5
    set_rng_state(saved, device)
    assert states[name] == 0 and states["cuda:0"] == 1


# How a user may have set the precision of float32 products, by torch's older call or, from 2.9 on, by its newer attributes
NEWER = [f"torch.backends.{where}fp32_precision" for where in ("", "mkldnn.", "cuda.matmul.", "mkldnn.matmul.")
         if hasattr(torch.backends.cuda.matmul, "fp32_precision")]
CHOICES = ["torch.backends.cuda.matmul.allow_tf32 = True",
           *(f"torch.set_float32_matmul_precision({value!r})" for value in ("highest", "high", "medium")),
           *(f"{name} = {value!r}" for name in NEWER for value in ("none", "ieee", "tf32", "bf16")
             if "cuda" not in name or value != "bf16")]


def answer(code):
    try:
        return eval(code)
    except RuntimeError:
        return "torch refuses to say"


def settings():
    older = "torch.get_float32_matmul_precision()", "torch.backends.cuda.matmul.allow_tf32"
    return [answer(code) for code in (*older, *NEWER)]


def as_torch_starts():
    torch.set_float32_matmul_precision("highest")
    for name in NEWER:
        exec(f"{name} = 'none'")


@pytest.fixture
def clean():
    as_torch_starts()
    yield
    as_torch_starts()


@quick_products()
def within():
    return settings()


@pytest.mark.parametrize("first", CHOICES)
def test_quick_products_leave_whatever_a_user_has_set(clean, first):
    for second in CHOICES:
        as_torch_starts()
        exec(first)
        exec(second)
        before = settings()
        assert within()[:2] == within()[:2] == ["medium", True]
        assert settings() == before, second


def test_what_a_user_sets_for_all_backends_afterwards_still_counts(clean):
    for name in NEWER[:1]:
        exec(f"{name} = 'tf32'")
        within()
        exec(f"{name} = 'ieee'")
        assert settings()[2:] == ["ieee"] * len(NEWER)


def test_quick_products_on_a_torch_that_has_only_the_older_way(clean, monkeypatch):
    """Before 2.9: torch.backends.cuda.matmul without the attribute, and no torch.backends.mkldnn.matmul."""
    monkeypatch.setattr(torch.backends.cuda, "matmul", object())
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", None, raising=False)
    torch.set_float32_matmul_precision("high")
    with quick_products():
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "high"
