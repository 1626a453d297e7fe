"""fit(): the same bits again, killed anywhere and resumed, and stopped when it diverges."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from clock import tick
from torch.optim.optimizer import register_optimizer_step_pre_hook

from amnesia import CVAE, Diverged, Pictures, Saved, Stage, Workspace, fit, negative_elbo_terms
from amnesia.training import optimizer_for

SETTINGS = {"steps": 60, "seed": 0}
PROCESSES = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")     # CUDA forbids forks
DIGITS = Pictures(torch.randint(256, (100, 784), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(100) % 10)


def run(stage=None, die_at=None, schedule="one-cycle", rate=1e-3):
    """Sixty steps over several epochs, with pictures along the way; at step `die_at` this process is killed."""
    torch.manual_seed(0)
    cvae, calls = CVAE(latent_dim=4, hidden=(32, 16)), 0
    shown = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))

    def loss():
        nonlocal calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        reconstruction, kl = negative_elbo_terms(cvae, *DIGITS.batch(16))
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    history = fit(cvae, loss, steps=60, learning_rate=rate, schedule=schedule, data=DIGITS, stage=stage,
                  snapshot=lambda: {"frames": cvae.generate(torch.arange(20) % 10, shown)})
    return cvae.state_dict() | history.pop("terms") | history


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def every_step(monkeypatch):
    """Looks at the clock and saves at every step."""
    tick(100, monkeypatch.setattr)


def test_a_seed_gives_the_same_bits():
    """Whatever was taken from the data before."""
    first = run()
    DIGITS.batch(7)
    assert same(first, run())


def run_and_die(folder, die_at, schedule):
    tick(100)
    run(Stage(Workspace(folder), "cvae.pt", SETTINGS), die_at, schedule)


@pytest.mark.parametrize(("die_at", "schedule"), [(2, "one-cycle"), (31, "constant"), (60, "one-cycle")])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, every_step, die_at, schedule):
    victim = PROCESSES.Process(target=run_and_die, args=(tmp_path, die_at, schedule))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    stage = Stage(Workspace(tmp_path), "cvae.pt", SETTINGS)
    assert Saved(stage.unfinished).done == die_at - 1
    torch.randn(7)                                          # whatever else the next session draws
    resumed = run(stage, schedule=schedule)
    assert same(resumed, run(schedule=schedule)) and len(resumed["frames"]) == len(resumed["snapshot_steps"]) > 20


def test_one_cycle_by_the_formula():
    """A climb from a twenty-fifth over a tenth of the run, then down to nothing; and Adam's memory of a hundred steps."""
    for steps, climb in ((200, 0.1 * 201 - 1), (1, 0), (7, 1)):
        taken, model = [], torch.nn.Linear(1, 1)
        hook = register_optimizer_step_pre_hook(lambda optimizer, *_, taken=taken: taken.append(dict(optimizer.param_groups[0])))
        fit(model, lambda model=model: {"kl": model(torch.ones(1, 1)).square().mean()}, steps=steps, learning_rate=0.5,
            weight_decay=0.012)
        hook.remove()
        if steps > 7:
            expected = np.interp(np.arange(steps), [0, climb, steps], [0.5 / 25, 0.5, 0.5 / 25e4])
            np.testing.assert_allclose([group["lr"] for group in taken], expected, rtol=1e-6)
        assert len(taken) == steps and max(group["lr"] for group in taken) <= 0.5
        assert {(group["betas"], group["weight_decay"]) for group in taken} == {((0.9, 0.99), 0.012)}


def test_constant_is_the_papers_adam_and_weights_decay_beside_the_gradient(cvae):
    """Decoupled (Loshchilov & Hutter 2019): without a gradient a step takes rate times decay of each weight."""
    optimizer, scheduler = optimizer_for(cvae, 10, 0.5, "constant", weight_decay=0.1)
    for _ in range(3):
        assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        before = [p.detach().clone() for p in cvae.parameters()]
        for p in cvae.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        scheduler.step()
        for p, old in zip(cvae.parameters(), before, strict=True):
            torch.testing.assert_close(p.detach(), 0.95 * old)


def test_divergence_names_step_and_term_and_keeps_the_last_good_state(store, every_step):
    stage, calls, model = Stage(store, "cvae.pt", SETTINGS), 0, torch.nn.Linear(1, 1)

    def loss():
        nonlocal calls
        calls += 1
        kl = model(torch.ones(1, 1)).square().mean()
        return {"reconstruction": torch.ones((), requires_grad=True), "kl": kl * float("nan") if calls == 9 else kl}

    with pytest.raises(Diverged, match="step 9: kl = nan"):
        fit(model, loss, steps=60, learning_rate=1e-3, stage=stage)
    saved = Saved(stage.unfinished)
    assert saved.done == 8 and all(value.isfinite().all() for value in saved.state.values())
    with pytest.raises(Diverged, match="learning_rate"):
        run(schedule="constant", rate=1e4)
