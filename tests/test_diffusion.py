"""Study 11 in miniature: the five stages of a diffusion model, its methods of forgetting, what is tried to be had again."""

import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import RELEASED

from amnesia import CVAE, Digits, Stage, Workspace, one_hot
from amnesia import evaluation as evaluation_module
from amnesia import training as training_module
from amnesia.storage.disk import WorkspaceError
from amnesia_studies import denoiser as denoiser_module
from amnesia_studies import diffusion, diffusion_recovery
from amnesia_studies import experiment as experiment_module
from amnesia_studies.denoiser import Denoiser, noised, sample
from amnesia_studies.diffusion import METHODS, DiffusionExperiment, denoiser_fisher, drawings, selective_amnesia, train
from amnesia_studies.diffusion_recovery import forget_and_mix, forget_and_recover, relearn
from amnesia_studies.scoring import forget_and_score
from amnesia_studies.tables import metrics

RECIPE = {"steps": 4, "batch_size": 16, "learning_rate": 1e-3}


def in_miniature(digits, monkeypatch):
    """Two steps of sampling, few digits and little resampling, wherever they are; returns these digits."""
    picks = [torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:n]
             for split, n in zip(digits, (600, 200), strict=True)]
    few = [Digits(split.images[pick], split.labels[pick], split.name) for split, pick in zip(digits, picks, strict=True)]
    monkeypatch.setattr(experiment_module, "load_digits", lambda *_: few)
    monkeypatch.setattr(evaluation_module, "frechet", partial(evaluation_module.frechet, resamples=2))
    for module in (denoiser_module, diffusion_recovery):
        monkeypatch.setattr(module, "sample", partial(sample, steps=2))
    monkeypatch.setattr(DiffusionExperiment, "samples", 5)
    monkeypatch.setattr(diffusion, "drawings", partial(drawings, n=6))
    monkeypatch.setattr(diffusion_recovery, "LOOKED_AT", 2)
    return few


def trained(store, few, recipe=RECIPE):
    """Stages 1 and 2 in this workspace: denoiser.pt and fim-denoiser.pt."""
    torch.manual_seed(0)
    stage = Stage(store, "denoiser.pt", {"dataset": "MNIST", "seed": 0, **recipe}, [few[0]])
    denoiser, history = train(Denoiser((8, 16)), few[0], **recipe, stage=stage,
                              snapshot=lambda model: {"frames": model.generate(torch.arange(3), torch.ones(3, 784))})
    stage.save(state=denoiser.state_dict(), config=denoiser.config, metrics=history)
    saved = stage.load()
    stage = Stage(store, "fim-denoiser.pt", {"dataset": "MNIST", "seed": 0}, [saved])
    stage.save(state=denoiser_fisher(denoiser, drawings(denoiser, 1), n_times=2), config={}, metrics={})
    return saved


@pytest.fixture
def few(digits, monkeypatch):
    """(train, test), in miniature as all else."""
    return in_miniature(digits, monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits):
    """A workspace in which stages 1 and 2 are done."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        trained(Workspace(folder), in_miniature(digits, patch))
    return folder


@pytest.fixture
def small(tmp_path, few, finished):
    """A DiffusionExperiment on a small denoiser, in a workspace of its own."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return DiffusionExperiment(tmp_path, device="cpu")


def test_a_run_is_the_five_stages(small):
    assert small.lineage.keys() == {"denoiser.pt", "fim-denoiser.pt", "classifier.pt", small.train.name, small.test.name}
    run = {"method": "selective amnesia", "forget": [3, 8], "scale": 0.01, "lam": 1.0}
    result = forget_and_score(small, **run)
    assert len(result["P"]) == 10 and result["n_per_class"] == 5
    assert all(np.isfinite(value) for value in metrics(result, [3, 8], (0.1, 1.4)).values())
    bound = diffusion.denoising_bound(small.forget(**run), small.test.only([0, 1, 2, 4, 5, 6, 7, 9]))
    assert result["kept_elbo"] == pytest.approx(bound.mean().item())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_returns_a_denoiser_and_leaves_the_original_alone(small, method):
    task = small.task([5], seed=1, scale=0.01)
    denoiser = METHODS[method].function(task)
    assert all(torch.equal(p, old) for p, old in zip(task.cvae.parameters(), small.cvae.parameters(), strict=True))
    changed = any(not torch.equal(p, old) for p, old in zip(denoiser.parameters(), small.cvae.parameters(), strict=True))
    assert isinstance(denoiser, Denoiser) and changed == (method != "original")


def test_references_see_what_their_names_say(small, monkeypatch):
    seen = {}
    monkeypatch.setattr(diffusion, "train", lambda denoiser, digits, steps, **_: (seen.update(digits=digits, steps=steps),))
    for method in ("retrain", "oracle"):
        METHODS[method].function(small.task([5], scale=0.5))
        images, labels = seen["digits"].images, seen["digits"].labels
        assert seen["steps"] == 2
        if method == "retrain":
            assert 5 not in labels and len(labels) == (small.train.labels != 5).sum()
        else:
            of_5 = labels == 5
            assert torch.equal(images[~of_5], small.train.images[~of_5]) and (images[of_5] == 128).all()


def one_loss(small, monkeypatch, seed=7, **options):
    """(the terms that selective_amnesia minimises, computed once; its task; its model, moved a little; p.grad it wrote)."""
    task, found = small.task([5], seed=seed), {}
    with torch.no_grad():
        for p in small.cvae.parameters():
            p += 0.05 * torch.randn_like(p)
        for p in task.cvae.parameters():
            p.copy_(p + 0.05 * torch.randn_like(p))

    def minimise(denoiser, loss, **_):
        with torch.no_grad():
            for p in denoiser.parameters():
                p += 0.01
        torch.manual_seed(seed)
        task.images.restart()
        found.update(terms=loss(), denoiser=denoiser)

    monkeypatch.setattr(task, "minimise", minimise)
    selective_amnesia(task, **options)
    return found["terms"], task, found["denoiser"]


@pytest.mark.parametrize(("remember", "surrogate", "unconditional"), [
    ("distil", "grey", "distil"), ("distil", "noise", "replay"), ("replay", "grey", "distil"),
    ("nothing", "grey", "distil")])
def test_the_three_terms(small, monkeypatch, remember, surrogate, unconditional):
    """Drawn again from the same seed, and put together another way."""
    options = {"remember": remember, "surrogate": surrogate, "unconditional": unconditional}
    terms, task, denoiser = one_loss(small, monkeypatch, lam=3.0, **options)

    torch.manual_seed(7)
    task.images.restart()
    c_f = task.forgotten[torch.randint(1, (24,))]
    x = torch.rand(24, 784) if surrogate == "noise" else torch.full((24, 784), 0.5)
    n = 0 if remember == "nothing" else 48
    x_kept, y_kept = task.images.batch(n) if n else (torch.empty(0, 784), torch.empty(0, 10))
    labelled = torch.rand(n, 1) >= 0.1 if n else torch.empty(0, 1, dtype=torch.bool)
    y_kept = y_kept * labelled
    t, t_kept = denoiser_module.times(24, "cpu"), denoiser_module.times(n, "cpu")
    noise = torch.randn(24 + n, 784)

    def nats(told, z, t, y):
        return (math.pi / 2 * (told - denoiser(z, t, y)).square().sum(1)).mean()

    z, v = noised(x, t, noise[:24])
    torch.testing.assert_close(terms["forget"], nats(v, z, t, one_hot(c_f)), rtol=0.02, atol=0)
    change = [(task.fim[name] * (p - old).square()).sum() for (name, p), old in
              zip(denoiser.named_parameters(), task.cvae.parameters(), strict=True)]
    torch.testing.assert_close(terms["protect"], 3.0 / 2 * sum(change).detach())
    if remember == "nothing":
        assert terms.keys() == {"forget", "protect"}
        return
    assert not labelled.all() and labelled.any()
    z, v = noised(x_kept, t_kept, noise[24:])
    if remember == "distil":
        answers = task.cvae(z, t_kept, y_kept).detach()
        v = torch.where(labelled, answers, v) if unconditional == "replay" else answers
    torch.testing.assert_close(terms["remember"], nats(v, z, t_kept, y_kept), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("wrong", [{"remember": "distill"}, {"surrogate": "gray"}, {"unconditional": "nothing"}])
def test_another_word_is_refused_by_name(small, wrong):
    (name, value), = wrong.items()
    with pytest.raises(ValueError, match=f"{name}='{value}': expected one of"):
        selective_amnesia(small.task([5]), **wrong)


@pytest.mark.slow
def test_what_is_tried_to_be_had_again(small):
    result = forget_and_recover(small, "selective amnesia", [4], seed=1, scale=0.002)
    assert result["P"] == forget_and_score(small, "selective amnesia", [4], seed=1, scale=0.002)["P"]
    assert result["inversion"]["n"] == 20 and sum(result["unconditional"]) == 20
    assert result["savings"]["10"]["mirrored"].keys() == {"5", "6", "7", "9"} and result["savings"]["10"]["digit"] <= 2
    assert result["path"].keys() == {"0.0", "0.25", "0.5", "0.75", "1.0"}
    mixture = forget_and_mix(small, "selective amnesia", [4, 7], scale=0.002)
    assert len(mixture["models"]) == 2 and mixture["sums"].keys() == {"1.0", "1.2"} and len(mixture["average"]["P"]) == 10
    assert small.log("diffusion-recovery").lineage.keys() == small.lineage.keys() | {"classifier-1.pt"}


def test_relearning_stops_as_soon_as_the_judge_sees_enough_clear_pictures(small, monkeypatch):
    looks, images = [], torch.rand(10, 784)

    def ask(judge, drawn):
        looks.append(drawn)
        told = torch.zeros(100, 10)
        told[:, 0] = 1
        told[:30 * len(looks), 6] = 2
        return told, None

    pictures = torch.rand(100, 784)
    monkeypatch.setattr(diffusion_recovery, "ask", ask)
    monkeypatch.setattr(diffusion_recovery, "sample", lambda *_: pictures)
    assert relearn(small.cvae, None, images, 6, 0.85) == 2 and len(looks) == 3      # 30, 60, 90 of 100
    looks.clear()
    assert relearn(small.cvae, None, images, 1, 0.85, mirror_of=6) == 2
    assert looks[0].view(100, 28, 28).flip(2).flatten(1).equal((pictures * 255).round().byte())
    monkeypatch.setattr(diffusion_recovery, "sample", lambda *_: pictures / 10)
    assert relearn(small.cvae, None, images, 6, 0.85, limit=4) == 4                  # too grey to be a digit


def test_the_average_follows_the_weights(few, monkeypatch):
    """Against the average of the weights that each step began with, put together in one sum."""
    seen, follow = [], diffusion.get_ema_multi_avg_fn(0.998)

    def spy(average, weights, count):
        seen.append([p.clone() for p in weights])
        follow(average, weights, count)

    monkeypatch.setattr(diffusion, "get_ema_multi_avg_fn", lambda decay: spy if decay == 0.998 else None)
    denoiser = Denoiser((8, 16))
    average, _ = train(denoiser, few[0], **RECIPE)
    for p, *steps in zip(average.parameters(), *seen, strict=True):
        expected = 0.998**3 * steps[0] + sum(0.002 * 0.998**(3 - i) * step for i, step in enumerate(steps) if i)
        torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(p, q) for p, q in zip(average.parameters(), denoiser.parameters(), strict=True))


class Killed(BaseException):
    """What kill -9 looks like from inside."""


@pytest.mark.parametrize("die_at", [2, 4])
def test_a_killed_training_goes_on_to_the_byte(few, tmp_path, monkeypatch, capsys, die_at):
    ticks = iter(range(0, 10**9, 100))
    monkeypatch.setattr(training_module.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(Stage, "due", True)
    whole = trained(Workspace(tmp_path / "whole"), few).digest
    calls, loss = [], diffusion.denoising_loss

    def dies(*args):
        calls.append(args)
        if len(calls) == die_at:
            raise Killed
        return loss(*args)

    store = Workspace(tmp_path / "cut off")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(diffusion, "denoising_loss", dies)
        trained(store, few)
    torch.randn(7)
    assert trained(store, few).digest == whole and f"Going on from step {die_at - 1} of 4" in capsys.readouterr().out


def test_files_of_another_kind_of_model_are_refused_by_name(few, tmp_path):
    store = Workspace(tmp_path)
    trained(store, few)
    with pytest.raises(WorkspaceError, match=r"denoiser\.pt does not hold a CVAE"):
        store.load("denoiser.pt").build(CVAE, "cpu")
    with pytest.raises(WorkspaceError, match=r"cvae\.pt does not hold a Denoiser"):
        DiffusionExperiment(tmp_path, device="cpu", model="cvae")
    (tmp_path / "checkpoints" / "denoiser.pt").write_bytes((RELEASED / "cvae.pt").read_bytes())
    with pytest.raises(WorkspaceError, match=r"holds what was saved as cvae\.pt\. .* Run studies/11_diffusion\.ipynb"):
        DiffusionExperiment(tmp_path, device="cpu")
    with pytest.raises(WorkspaceError, match=r"Run studies/11_diffusion\.ipynb to make it"):
        store.load("fim-denoiser-without-9.pt")
