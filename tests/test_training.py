"""fit(): the same bits again, cut off anywhere and resumed, and stopped when it diverges."""

import time

import numpy as np
import pytest
import torch
from clock import tick
from conftest import REPOSITORY
from torch.optim.optimizer import register_optimizer_step_pre_hook

from amnesia import CVAE, Digits, Stage, Workspace, fit, negative_elbo_terms
from amnesia.storage.disk import WorkspaceError
from amnesia.storage.files import Saved, save
from amnesia.training import Diverged, optimizer_for

SETTINGS = {"steps": 60, "seed": 0}


class Killed(BaseException):
    """What kill -9 looks like from inside: nothing gets to clean up."""


def run(digits, stage=None, die_at=None, schedule="one-cycle", rate=1e-3):
    torch.manual_seed(0)
    train = Digits(digits[0].images[:100], digits[0].labels[:100])  # so few that the run sees several epochs
    cvae, calls = CVAE(latent_dim=4, hidden=(32, 16)), 0
    shown = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))

    def loss():
        nonlocal calls
        calls += 1
        if calls == die_at:
            raise Killed
        reconstruction, kl = negative_elbo_terms(cvae, *train.batch(16))
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    def snapshot():
        return {"frames": cvae.generate(torch.arange(20) % 10, shown)}

    history = fit(cvae, loss, steps=60, learning_rate=rate, schedule=schedule, data=train, snapshot=snapshot,
                  snapshot_steps=10, stage=stage)
    return cvae.state_dict(), history


def assert_identical(a, b):
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], dict):
            assert_identical(a[key], b[key])
        else:
            assert torch.equal(a[key], b[key]), key


@pytest.fixture
def every_step(monkeypatch):
    """Looks at the clock and saves at every step."""
    tick(100, monkeypatch.setattr)


def test_a_seed_gives_the_same_bits(digits):
    for a, b in zip(run(digits), run(digits), strict=True):
        assert_identical(a, b)


@pytest.mark.parametrize("schedule", ["one-cycle", "constant"])
@pytest.mark.parametrize("die_at", [2, 31, 60])
def test_a_killed_run_resumes_bit_for_bit(digits, tmp_path, every_step, die_at, schedule):
    whole = run(digits, schedule=schedule)
    store = Workspace(tmp_path)
    with pytest.raises(Killed):
        run(digits, Stage(store, "cvae.pt", SETTINGS), die_at, schedule)
    torch.randn(7)  # whatever else the next session draws
    resumed = run(digits, Stage(store, "cvae.pt", SETTINGS), schedule=schedule)
    for a, b in zip(whole, resumed, strict=True):
        assert_identical(a, b)
    assert len(resumed[1]["frames"]) == len(resumed[1]["snapshot_steps"]) == 10


def test_changed_settings_do_not_resume(digits, tmp_path, every_step, capsys):
    store = Workspace(tmp_path)
    with pytest.raises(Killed):
        run(digits, Stage(store, "cvae.pt", SETTINGS), die_at=30)
    _, history = run(digits, Stage(store, "cvae.pt", {**SETTINGS, "seed": 5}))
    assert "seed=5 (was 0)" in capsys.readouterr().out
    assert_identical(history, run(digits)[1])


def test_a_damaged_unfinished_run_starts_anew(digits, tmp_path, every_step, capsys):
    stage = Stage(Workspace(tmp_path), "cvae.pt", SETTINGS)
    with pytest.raises(Killed):
        run(digits, stage, die_at=30)
    stage.unfinished.write_bytes(stage.unfinished.read_bytes()[:5000])
    _, history = run(digits, stage)
    assert "starting anew" in capsys.readouterr().out
    assert_identical(history, run(digits)[1])


def test_progress_that_does_not_fit_is_set_aside_and_the_next_try_starts_anew(digits, tmp_path, every_step):
    stage = Stage(Workspace(tmp_path), "cvae.pt", SETTINGS)
    stage.save_progress({"state": {"nothing": torch.zeros(1)}}, 7, torch.device("cpu"))  # as by an older version
    with pytest.raises(WorkspaceError, match=r"set aside as cvae\.unusable\.pt.*starts anew"):
        run(digits, stage)
    assert_identical(run(digits, stage)[1], run(digits)[1])


@pytest.mark.parametrize("steps", range(1, 25))
def test_any_number_of_steps_runs_and_the_rate_ends_at_nothing(steps):
    model = torch.nn.Linear(1, 1)
    optimizer, scheduler = optimizer_for(model, steps, 0.5, "one-cycle")
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) <= 0.5 and optimizer.param_groups[0]["lr"] < (1e-4 if steps > 1 else 1)
    assert min(rates) > 0 and (steps < 3 or max(rates) > 0.2)


def test_one_cycle_by_the_formula():
    """What each step of fit() is done with: a climb from a twenty-fifth over a tenth of the run, then down to nothing."""
    taken, model = [], torch.nn.Linear(1, 1)
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: taken.append(dict(optimizer.param_groups[0])))
    fit(model, lambda: {"kl": model(torch.ones(1, 1)).square().mean()}, steps=200, learning_rate=0.5, weight_decay=0.012)
    hook.remove()
    expected = np.interp(np.arange(200), [0, 0.1 * 201 - 1, 200], [0.5 / 25, 0.5, 0.5 / 25e4])
    np.testing.assert_allclose([group["lr"] for group in taken], expected, rtol=1e-6)
    assert {(group["betas"], group["weight_decay"]) for group in taken} == {((0.9, 0.99), 0.012)}


def test_weights_decay_by_the_rate_beside_the_gradient(cvae):
    """Decoupled (Loshchilov & Hutter 2019): without a gradient a step takes rate times decay of each weight."""
    optimizer, _ = optimizer_for(cvae, 10, 0.5, "constant", weight_decay=0.1)
    before = [p.detach().clone() for p in cvae.parameters()]
    for p in cvae.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(cvae.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), 0.95 * old)


def test_divergence_names_step_and_term_and_keeps_the_last_good_state(digits, tmp_path, every_step):
    torch.manual_seed(0)
    stage, calls = Stage(Workspace(tmp_path), "cvae.pt", SETTINGS), 0
    model = torch.nn.Linear(1, 1)

    def loss():
        nonlocal calls
        calls += 1
        kl = model(torch.ones(1, 1)).square().mean()
        return {"reconstruction": torch.ones((), requires_grad=True), "kl": kl * float("nan") if calls == 9 else kl}

    with pytest.raises(Diverged, match=r"step 9: kl = nan"):
        fit(model, loss, steps=60, learning_rate=1e-3, stage=stage)
    saved = Saved(stage.unfinished)
    assert saved.done == 8 and all(value.isfinite().all() for value in saved.state.values())


def test_a_loss_that_runs_away_is_divergence(digits):
    with pytest.raises(Diverged, match="learning_rate"):
        run(digits, schedule="constant", rate=1e4)


def test_constant_is_the_papers_adam(cvae):
    optimizer, scheduler = optimizer_for(cvae, 10, 1e-4, "constant")
    for _ in range(10):
        assert optimizer.param_groups[0]["lr"] == 1e-4 and optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match="schedule='cosine'"):
        optimizer_for(cvae, 10, 1e-4, "cosine")


def test_saving_progress_takes_little_of_the_time(tmp_path):
    """A full-size save must stay well below 2 % of the seconds between two saves."""
    cvae, stage = CVAE(), Stage(Workspace(tmp_path), "cvae.pt", SETTINGS)
    optimizer, _ = optimizer_for(cvae, 10, 1e-3, "one-cycle")
    sum(p.sum() for p in cvae.parameters()).backward()
    optimizer.step()
    durations = []
    for _ in range(5):
        start = time.process_time()                         # of this process alone, however busy the machine is
        stage.save_progress({"state": cvae, "optimizer": optimizer}, 1, torch.device("cpu"))
        durations.append(time.process_time() - start)
    assert sorted(durations)[2] < 0.02 * stage.save_seconds


def test_a_finished_file_of_before_snapshot_steps_had_their_name_goes_on_working(tmp_path):
    """As the released cvae.pt, and a reader's own."""
    content = {"settings": {}, "lineage": {}, "state": {}, "config": {}, "metrics": {"moments": torch.arange(3)}}
    save(tmp_path / "cvae.pt", content)
    for saved in (Saved(tmp_path / "cvae.pt"), Saved(REPOSITORY / "checkpoints" / "released" / "cvae.pt")):
        assert saved.metrics["snapshot_steps"][0] == 0 and "moments" not in saved.metrics
