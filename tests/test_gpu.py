"""What can be said only where there is a CUDA card: skipped without one."""

import pytest
import torch
from cells import run_here
from clock import tick

from amnesia import CVAE, Stage, diagonal_fisher, fit, hardware, negative_elbo_terms, pick_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")


class Dying(Stage):
    def save_progress(self, *run):
        super().save_progress(*run)
        raise EOFError                                      # the machine is lost


def train(pictures, steps=60, stage=None, capture=True):
    torch.manual_seed(0)
    cvae, labels = CVAE().cuda(), torch.arange(10, device="cuda")
    z = torch.randn(10, 8, device="cuda")

    def loss():
        reconstruction, kl = negative_elbo_terms(cvae, *pictures.batch(128))
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    history = fit(cvae, loss, steps=steps, learning_rate=3e-3, data=pictures, stage=stage, capture=capture,
                  snapshot=lambda: {"frames": cvae.generate(labels, z)})
    return [*cvae.parameters(), *history["terms"].values(), history["frames"]]


def fisher(pictures, stage=None):
    torch.manual_seed(0)
    return [*diagonal_fisher(CVAE().cuda(), 5000, stage=stage).values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("work", [train, fisher])
def test_a_seed_repeats_and_a_run_that_was_cut_off_ends_with_the_same_bits(few, store, monkeypatch, work):
    pictures = few[0].to(pick_device("cuda"))
    tick(100, monkeypatch.setattr)
    whole = work(pictures)
    assert same(whole, work(pictures)) and torch.cuda.get_device_name() in hardware()
    with pytest.raises(EOFError):
        work(pictures, stage=Dying(store, "cvae.pt", {}))
    torch.randn(7, device="cuda")
    assert same(whole, work(pictures, stage=Stage(store, "cvae.pt", {})))


@pytest.mark.parametrize("steps", [3, 60])
def test_a_captured_run_is_the_plain_one_to_the_bit(few, steps):
    pictures = few[0].to("cuda")
    assert same(train(pictures, steps), train(pictures, steps, capture=False))


@pytest.mark.usefixtures("with_few")
@pytest.mark.parametrize(("stem", "choices"), [
    ("01", {}), ("03", {}), ("03", {"remember": "replay", "surrogate": 4}), ("03", {"surrogate": 4})])
def test_the_notebooks_steps_neither_mix_devices_nor_wait_for_the_card(tmp_path, stem, choices):
    names = run_here(stem, {"01": "stage.save(", "03": "def loss"}[stem], workspace=str(tmp_path), steps=1, batch_size=16,
                     device="cuda", **choices)
    names["loss"]()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(names["loss"]().values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {p.grad.device.type for p in names["cvae"].parameters()} == {"cuda"}
