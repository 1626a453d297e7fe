"""What the machine can do: a device that works, threads, quick products that leave the user's settings alone."""

import pytest
import torch

from amnesia import CVAE, device, fit, hardware, negative_elbo_terms, one_hot, pick_device
from amnesia.device import bfloat16_products, quick_products


def test_a_gpu_that_is_there_and_fails_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ones = torch.ones
    for cuda in ("no such device", "meta"):  # every operation fails; a tensor is made, and has nothing to answer .item() with
        monkeypatch.setattr(torch, "ones", lambda *size, device, cuda=cuda: ones(size, device=cuda))
        with pytest.raises(ValueError, match=r"device='auto' \(cuda here\).*cpu"):
            pick_device("auto")


def test_a_device_by_name_or_as_torch_has_it():
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    for unusable in ("abacus", torch.device("meta"), 3):
        with pytest.raises(ValueError, match="device="):
            pick_device(unusable)


def test_torch_takes_no_more_threads_than_this_process_may_keep_busy(monkeypatch):
    """As in a container with a quota of one CPU of many; a number that a user chose stands."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(device, "cpu_count", lambda: 1)
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        pick_device("cpu")
        assert torch.get_num_threads() == 2 and "2 threads" in hardware()
        monkeypatch.delenv("OMP_NUM_THREADS")
        pick_device("cpu")
        assert torch.get_num_threads() == 1 and "CPU" in hardware()
    finally:
        torch.set_num_threads(threads)


def test_quick_products_leave_what_a_user_has_set():
    """Also after an error."""
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), quick_products():
            assert torch.get_float32_matmul_precision() == "medium"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("units", "told"), [({"avx512_bf16": True}, True), ({"avx512_bf16": True, "amx_bf16": True}, False),
                                             ({}, False), (None, False)])
def test_fit_rounds_products_where_a_cpu_has_the_units_and_nothing_else(monkeypatch, units, told):
    """Where torch does not take them by itself. Logits, likelihood, sums, weights and gradients are float32, and so is the
    model's use afterwards; None: an older torch, which does not say."""
    if units is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert ("bfloat16" in hardware()) == told
    with bfloat16_products(torch.device("meta")):
        assert torch.nn.Linear(4, 3)(torch.randn(2, 4)).dtype == torch.float32
    torch.manual_seed(0)
    cvae, seen = CVAE(4, hidden=(32, 16)), {True: set(), False: set()}
    cvae.decoder[-1].register_forward_hook(lambda layer, inputs, logits: seen[cvae.training].add(logits.dtype))
    x, y = torch.rand(8, 784), one_hot(torch.arange(8), 10)

    def loss():
        terms = negative_elbo_terms(cvae, x, y)
        assert {term.dtype for term in terms} == {torch.float32}
        return {"negative ELBO": sum(terms).mean()}

    fit(cvae, loss, steps=3, learning_rate=1e-3)
    cvae.generate(torch.arange(8))
    assert seen == {True: {torch.bfloat16 if told else torch.float32}, False: {torch.float32}}
    assert {p.dtype for p in cvae.parameters()} == {p.grad.dtype for p in cvae.parameters()} == {torch.float32}
