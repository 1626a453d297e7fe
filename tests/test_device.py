"""What the processor can do: a device that works, threads, quick products that leave the user's settings alone."""

import numpy as np
import pytest
import torch

from amnesia import CVAE, fit, negative_elbo_terms, one_hot, pick_device, processor
from amnesia.processor import bfloat16_products, hardware, quick_products, rng_state, set_rng_state
from amnesia.storage.files import versions


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


@pytest.mark.parametrize("name", ["cuda:1", "mps", "xpu:1"])
def test_the_random_state_is_that_of_the_device_in_use(monkeypatch, name):
    """With two cards, not that of the first; resumed on a device of another kind, only the CPU's."""
    states = dict.fromkeys(("cuda:0", "xpu:0"), torch.ones(1)) | dict.fromkeys(("cuda:1", "xpu:1", "mps"), torch.zeros(1))
    device = torch.device(name)
    for kind in ("cuda", "xpu", "mps"):
        def get(card=kind if kind == "mps" else f"{kind}:0"):
            return states[str(card)]

        def put(state, card=kind if kind == "mps" else f"{kind}:0"):
            states[str(card)] = state
        monkeypatch.setattr(getattr(torch, kind), "get_rng_state", get)
        monkeypatch.setattr(getattr(torch, kind), "set_rng_state", put)
    saved = rng_state(device)
    states[name] = torch.tensor([5.0])
    set_rng_state(saved, torch.device("cpu"))
    assert states[name] == 5
    set_rng_state(saved, device)
    assert states[name] == 0 and states["cuda:0"] == states["xpu:0"] == 1


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
    """What torch answers, by the older call and by the newer attributes, where "ieee" is what "none" stands for."""
    older = "torch.get_float32_matmul_precision()", "torch.backends.cuda.matmul.allow_tf32"
    return [answer(code) for code in older], [answer(code).replace("none", "ieee") for code in NEWER]


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
    return settings()[0]


@pytest.mark.parametrize("first", CHOICES)
def test_quick_products_leave_what_a_user_has_set(clean, first):
    """What the older call refuses to name, a choice by the newer attributes, stays in force."""
    for second in CHOICES:
        as_torch_starts()
        exec(first)
        exec(second)
        older, newer = settings()
        refused = "torch refuses to say" in older
        assert within() == within() == (older if refused else ["medium", True])
        assert settings() == (older, newer) if refused else settings()[0] == older, second


def test_the_setting_is_back_after_an_error(clean):
    with pytest.raises(KeyError), quick_products():
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


UNITS = [({"avx512_bf16": True}, True), ({"avx512_bf16": True, "amx_bf16": False}, True),
         ({"avx512_bf16": True, "amx_bf16": True}, False), ({"avx512_bf16": False}, False), ({"bf16": True}, False)]


@pytest.mark.parametrize("units, told", UNITS)
def test_bfloat16_is_asked_for_where_a_cpu_has_the_units_and_torch_does_not_take_them(monkeypatch, units, told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    layer, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
    with bfloat16_products(torch.device("cpu")):
        assert layer(x).dtype == (torch.bfloat16 if told else torch.float32)
    with bfloat16_products(torch.device("meta")):
        assert layer(x).dtype == torch.float32
    assert ("bfloat16" in hardware()) == told
    monkeypatch.delattr(torch.cpu, "get_capabilities")                         # an older torch
    with bfloat16_products(torch.device("cpu")):
        assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("units", [{"avx512_bf16": True}, {}])
def test_fit_rounds_products_and_nothing_else(monkeypatch, units):
    """Logits, likelihood, sums, weights and gradients are float32, and so is the model's use afterwards."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    torch.manual_seed(0)
    cvae, seen = CVAE(4, (32, 16)), {True: set(), False: set()}
    cvae.decoder[-1].register_forward_hook(lambda layer, inputs, logits: seen[cvae.training].add(logits.dtype))
    x, y = torch.rand(8, 784), one_hot(torch.arange(8))

    def loss():
        assert {part.dtype for part in (*cvae.encode(x, y), cvae.decode(torch.zeros(8, 4), y))} == {torch.float32}
        return {"negative ELBO": sum(negative_elbo_terms(cvae, x, y)).mean()}

    fit(cvae, loss, steps=3, learning_rate=1e-3)
    cvae.generate(torch.arange(8))
    assert seen == {True: {torch.bfloat16 if units else torch.float32}, False: {torch.float32}}
    assert {p.dtype for p in cvae.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in cvae.parameters()} == {torch.float32}


def test_a_model_of_a_reader_s_own_is_rounded_as_the_helper_s_is(monkeypatch):
    """In its products alone, and so to the same bits, though it doesn't say what its answers are cast to: as 01's cell."""
    class Own(CVAE):
        def encode(self, x, y):
            return self.encoder(torch.cat([x, y], 1)).chunk(2, 1)

        def decode(self, z, y):
            return self.decoder(torch.cat([z, y], 1))

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)

    def fitted(kind):
        torch.manual_seed(0)
        cvae, x, y = kind(4, (32, 16)), torch.rand(8, 784), one_hot(torch.arange(8))
        fit(cvae, lambda: {"negative ELBO": sum(negative_elbo_terms(cvae, x, y)).mean()}, steps=3, learning_rate=1e-3)
        return list(cvae.parameters())

    assert all(torch.equal(a, b) for a, b in zip(fitted(Own), fitted(CVAE), strict=True))


def test_torch_takes_no_more_threads_than_this_process_may_keep_busy(monkeypatch):
    """As in a container with a quota of one CPU of many; a number that a user chose stands."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(processor, "cpu_count", lambda: 1)
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        pick_device("cpu")
        assert torch.get_num_threads() == 2 and "2 threads" in hardware()
        monkeypatch.delenv("OMP_NUM_THREADS")
        pick_device("cpu")
        assert torch.get_num_threads() == 1 and "1 thread" in hardware()
        monkeypatch.setattr(processor, "cpu_count", lambda: 8)
        pick_device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_the_record_names_the_device_in_use(monkeypatch):
    """Not the card beside it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    pick_device("cpu")
    assert "CPU" in versions()["hardware"] and versions()["numpy"] == np.__version__
    monkeypatch.setattr(processor, "used", torch.device("cuda:1"))
    assert versions()["hardware"] == "card 1"
