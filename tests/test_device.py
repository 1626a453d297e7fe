"""What the machine can do: a device that works, threads, quick products that leave the user's settings alone."""

import pytest
import torch

from amnesia import CVAE, device, fit, hardware, negative_elbo_terms, one_hot, pick_device
from amnesia.device import quick_products


def test_a_device_by_name_or_as_torch_has_it_and_one_that_fails_is_said(monkeypatch):
    assert pick_device("auto" if not torch.cuda.is_available() else "cpu") == pick_device(torch.device("cpu"))
    for unusable in ("abacus", torch.device("meta"), 3):
        with pytest.raises(ValueError, match="device="):
            pick_device(unusable)
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(size, device="meta"))       # a card that cannot compute
    with pytest.raises(ValueError, match=r"device='auto' \(cuda here\).*cpu"):
        pick_device("auto")


def test_torch_takes_no_more_threads_than_a_container_has_cpus_unless_a_user_chose_a_number(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(device, "cpu_count", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    try:
        pick_device("cpu")
        assert "2 threads" in hardware()
        monkeypatch.delenv("OMP_NUM_THREADS")
        pick_device("cpu")
        assert "1 threads" in hardware()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("units", "told"), [({"avx512_bf16": True}, True), ({"avx512_bf16": True, "amx_bf16": True}, False),
                                             ({}, False)])
def test_fit_rounds_products_where_a_cpu_has_the_units_and_nothing_else(monkeypatch, units, told):
    """Where torch does not take them by itself. Terms, weights, gradients and the model's use afterwards are float32; the
    user's own setting is back even after an error."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    cvae, seen = CVAE(4, hidden=(32, 16)), set()
    cvae.decoder[-1].register_forward_hook(lambda layer, inputs, logits: seen.add((cvae.training, logits.dtype)))

    def loss():
        assert torch.get_float32_matmul_precision() == "medium"
        terms = negative_elbo_terms(cvae, torch.rand(8, 784), one_hot(torch.arange(8), 10))
        assert {term.dtype for term in terms} == {torch.float32}
        return {"negative ELBO": sum(terms).mean()}

    fit(cvae, loss, steps=3, learning_rate=1e-3)
    cvae.generate(torch.arange(8))
    assert seen == {(True, torch.bfloat16 if told else torch.float32), (False, torch.float32)}
    assert {tensor.dtype for p in cvae.parameters() for tensor in (p, p.grad)} == {torch.float32}
    with pytest.raises(KeyError), quick_products():
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest" and ("bfloat16" in hardware()) == told
