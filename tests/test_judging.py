"""Who is asked, about which images: the judge's own training, and twins, against stand-ins that tell."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from cells import run_here
from conftest import REPOSITORY
from scipy.stats import chisquare

import amnesia
from amnesia import (
    CVAE,
    Classifier,
    Workspace,
    ask,
    evaluation,
    fit,
    grey_reference,
    model_metrics,
    one_hot,
    reference_metrics,
)
from amnesia.checkpoints import Saved

RELEASED = REPOSITORY / "checkpoints" / "released"


def test_the_judge_is_trained_on_turned_images_and_their_labels(few, tmp_path, monkeypatch):
    """By what goes into the model: each image of the batch, moved a little."""
    taken, shown = [], []
    batch = few[0].batch
    monkeypatch.setattr(few[0], "batch", lambda size: taken.append(batch(size)) or taken[-1])

    def look(judge, loss, data, **choices):
        judge.eval().register_forward_pre_hook(lambda _, args: shown.append(args[0]))
        terms, ((x, y),), (moved,) = loss(), taken, shown
        assert data is few[0] and len(x) == 100
        assert terms.keys() == {"cross-entropy"}
        assert terms["cross-entropy"].item() == pytest.approx(F.cross_entropy(judge(moved), y).item())
        assert ((moved - x).abs().mean(1) > 0.001).all() and 0.01 < (moved - x).abs().mean() < 0.15
        return {}

    monkeypatch.setattr(evaluation, "fit", look)
    evaluation.train_judge(Workspace(tmp_path), few[0], batch_size=100)
    assert shown


def test_fit_starts_its_data_from_the_start(few):
    """Whatever was taken from them before: the same run again is the same."""
    def run():
        torch.manual_seed(0)
        cvae, taken = CVAE(latent_dim=2, hidden=(4,)), []

        def loss():
            x, y = few[0].batch(64)
            taken.append(x)
            return {"reconstruction": sum(amnesia.negative_elbo_terms(cvae, x, y)).mean()}

        fit(cvae, loss, steps=3, learning_rate=1e-3, data=few[0])
        return torch.cat(taken)

    first = run()
    few[0].batch(100)
    assert torch.equal(run(), first)


def sampled(cvae, n, seed):
    """The samples of notebook 04, from the seed: a z for each place, the same for every model."""
    z = torch.randn(10 * n, cvae.latent_dim, generator=torch.Generator().manual_seed(seed)).double()
    y = one_hot(torch.arange(10).repeat_interleave(n), 10).double()
    with torch.no_grad():
        return (255 * cvae.double().decode(z, y).sigmoid()).view(10, n, 28, 28)


@pytest.mark.usefixtures("with_few")
def test_twins_are_of_one_z_by_the_seed_and_each_model_is_scored_by_its_own(few, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "frechet", partial(evaluation.frechet, resamples=2))
    run_here("04_sample", "stage.save(", workspace=str(tmp_path), n_per_class=40, seed=3)
    result = run_here("05_evaluate", "stage.save(", workspace=str(tmp_path))["result"]
    saved = torch.load(tmp_path / "checkpoints" / "samples-0.pt", weights_only=True)["state"]
    judge, kept = Saved(RELEASED / "classifier.pt").build(Classifier, "cpu"), list(range(1, 10))
    real = ask(judge, few[1].only(kept).images)[1]
    for title, name in (("original", "cvae"), ("amnesiac", "amnesiac-0")):
        cvae = Saved(RELEASED / f"{name}.pt").build(CVAE, "cpu")
        scored = model_metrics(judge, saved[title], cvae, few[1], [0], kept)
        assert (saved[title].double() - sampled(cvae, 40, 3)).abs().max() < 0.51, title
        assert getattr(result, title) == scored, title
        distance = scored["kept_frechet"], scored["interval95"]["kept_frechet"]
        assert distance == evaluation.frechet(ask(judge, saved[title][kept])[1], real)
    assert result.reference == reference_metrics(judge, *few, [0], kept)
    floor, _ = evaluation.frechet(ask(judge, few[0].only(kept).images)[1], real)
    assert result.reference["kept_frechet_floor"] == pytest.approx(floor, rel=1e-4)


class Certain(torch.nn.Module):
    """A judge to whom every picture is the same label; it notes what it is shown."""

    def __init__(self, label):
        super().__init__()
        self.config = {"shape": [1, 28, 28], "classes": 10}
        self.p, self.label, self.seen = torch.nn.Parameter(torch.zeros(())), label, []

    def features(self, x):
        self.seen.append(x)
        return x[:, :10] * 0

    def head(self, features):
        return features + 100 * F.one_hot(torch.tensor(self.label), 10)


def test_the_references_are_of_flat_grey_and_of_uniform_noise(few):
    """By the pictures that the judge is shown: 128 of 255 everywhere, and every grey alike."""
    judge = Certain(3)
    grey = grey_reference(judge, [3, 5])
    assert (grey["forgotten_probability"], grey["entropy"]) == pytest.approx((0.5, 0), abs=1e-6)
    assert judge.seen and all((x == 128 / 255).all() for x in judge.seen)
    judge.seen.clear()
    reference_metrics(judge, *few, [0], list(range(1, 10)), n=200)
    noise, = (x for x in judge.seen if len(x) == 200 and 0.49 < x.mean() < 0.51)
    counts = (255 * noise).round().long().flatten().bincount(minlength=256)
    assert len(counts) == 256 and chisquare(counts).pvalue > 1e-4 and noise.std(0).min() > 0.2


def test_the_frechet_distances_interval_is_1_96_standard_errors_by_the_bootstrap():
    """The spread of the distance over fresh samples from the same distribution, which the bootstrap stands for."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2000, 3, generator=generator)
    fresh = [evaluation.frechet(1.5 + torch.randn(300, 3, generator=generator), real, resamples=2)[0] for _ in range(200)]
    value, (low, high) = evaluation.frechet(1.5 + torch.randn(300, 3, generator=generator), real, resamples=400)
    assert value == pytest.approx((low + high) / 2)
    assert high - low == pytest.approx(2 * 1.96 * torch.tensor(fresh).std().item(), rel=0.25)
