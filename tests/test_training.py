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

PROCESSES = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")     # CUDA forbids forks
DIGITS = Pictures(torch.randint(256, (100, 784), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(100) % 10)


def run(stage=None, die_at=None, schedule="one-cycle"):
    """Sixty steps over several epochs, with pictures along the way; at step `die_at` this process is killed."""
    torch.manual_seed(0)
    cvae, calls = CVAE(latent_dim=4, hidden=(32, 16)), 0
    shown = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))

    def loss():
        nonlocal calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        assert cvae.training
        reconstruction, kl = negative_elbo_terms(cvae, *DIGITS.batch(16))
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    def snapshot():
        return {"frames": cvae.generate(torch.arange(20) % 10, shown), "training": torch.tensor(cvae.training)}

    history = fit(cvae, loss, steps=60, learning_rate=1e-3, schedule=schedule, data=DIGITS, stage=stage, snapshot=snapshot)
    return cvae.state_dict() | history.pop("terms") | history


def run_and_die(folder, die_at, schedule):
    tick(100)                                               # looks at the clock and saves at every step
    run(Stage(Workspace(folder), "cvae.pt", {}), die_at, schedule)


@pytest.mark.parametrize(("die_at", "schedule"), [(2, "one-cycle"), (31, "constant")])
def test_a_killed_run_resumes_and_ends_with_the_bits_of_a_whole_one(tmp_path, monkeypatch, die_at, schedule):
    victim = PROCESSES.Process(target=run_and_die, args=(tmp_path, die_at, schedule))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    tick(100, monkeypatch.setattr)
    stage = Stage(Workspace(tmp_path), "cvae.pt", {})
    assert Saved(stage.unfinished).done == die_at - 1
    torch.randn(7)
    resumed = run(stage, schedule=schedule)
    DIGITS.batch(7)
    whole = run(schedule=schedule)
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)
    at, frames = whole["snapshot_steps"], whole["frames"]
    assert at[[0, 1, -1]].tolist() == [0, 1, 60] and len(at) == len(frames.flatten(1).unique(dim=0)) > 20
    assert not whole["training"].any()


@pytest.mark.parametrize(("schedule", "steps", "climb", "betas"), [
    ("one-cycle", 200, 0.1 * 201 - 1, (0.9, 0.99)), ("one-cycle", 7, 1, (0.9, 0.99)), ("constant", 5, None, (0.9, 0.999))])
def test_the_rate_follows_its_schedule_and_weights_decay_beside_the_gradient(schedule, steps, climb, betas):
    """One cycle: up from a twenty-fifth over a tenth of the run, then down to nothing. Constant: the paper's Adam. Without a
    gradient, decoupled decay is all there is."""
    taken, model = [], torch.nn.Linear(1, 1, bias=False)
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: taken.append(dict(optimizer.param_groups[0])))
    before = model.weight.item()
    fit(model, lambda: {"kl": 0 * model.weight.sum()}, steps=steps, learning_rate=0.5, weight_decay=0.012, schedule=schedule)
    hook.remove()
    rates = np.array([group["lr"] for group in taken])
    assert len(rates) == steps and {group["betas"] for group in taken} == {betas}
    expected = 0.5 if climb is None else np.interp(np.arange(steps), [0, climb, steps], [0.5 / 25, 0.5, 0.5 / 25e4])
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert model.weight.item() == pytest.approx(before * np.prod(1 - 0.012 * rates))


@pytest.mark.parametrize(("bad", "said"), [(float("nan"), "nan"), (-2e4, r"-2e\+04")])
def test_divergence_names_step_and_term_and_keeps_the_last_good_state(store, monkeypatch, bad, said):
    tick(100, monkeypatch.setattr)
    stage, model, values = Stage(store, "cvae.pt", {}), torch.nn.Linear(1, 1), iter([1.0] * 8 + [bad])

    def loss():
        return {"reconstruction": torch.ones((), requires_grad=True), "kl": next(values) + 0 * model(torch.ones(1, 1)).sum()}

    with pytest.raises(Diverged, match=f"step 9: kl = {said}.*learning_rate"):
        fit(model, loss, steps=60, learning_rate=1e-3, stage=stage)
    saved = Saved(stage.unfinished)
    assert saved.done == 8 and all(value.isfinite().all() for value in saved.state.values())
