"""The metrics against scipy and numpy, the blocks of evaluation-<digits>.json; who is asked, about which images."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from cells import run_here
from conftest import RELEASED
from scipy.stats import chisquare

from amnesia import CVAE, Classifier, Pictures, Saved, Workspace, WorkspaceError, elbo, entropy, evaluation, load_judge
from amnesia.evaluation import ask, forgetting_metrics, frechet, mean_interval, model_metrics, reference_metrics, wilson_interval


def test_frechet_equals_scipys_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(200, 12)) + 0.3
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet(torch.tensor(a), torch.tensor(b))[0] == pytest.approx(expected, rel=1e-6)
    assert frechet(torch.tensor(a), torch.tensor(a))[0] == pytest.approx(0, abs=1e-6)


def test_the_frechet_distances_interval_is_1_96_standard_errors_by_the_bootstrap():
    """The spread of the distance over fresh samples from the same distribution, which the bootstrap stands for."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2000, 3, generator=generator)
    fresh = [frechet(1.5 + torch.randn(300, 3, generator=generator), real, resamples=2)[0] for _ in range(200)]
    value, (low, high) = frechet(1.5 + torch.randn(300, 3, generator=generator), real, resamples=400)
    assert value == pytest.approx((low + high) / 2)
    assert high - low == pytest.approx(2 * 1.96 * torch.tensor(fresh).std().item(), rel=0.25)


def test_the_other_intervals_and_the_entropy():
    """Newcombe 1998 (Two-sided confidence intervals for the single proportion), Table I, method 3: 81 of 263."""
    assert wilson_interval(81, 263) == (81 / 263, pytest.approx([0.2553, 0.3662], abs=1e-4))
    mean, (low, high) = mean_interval(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert (mean, (high - low) / 2) == pytest.approx((3.0, 1.959964 * np.std([1, 2, 3, 6], ddof=1) / 2))
    sure_and_unsure = torch.tensor([[1.0] + [0.0] * 9, [0.1] * 10])
    assert entropy(sure_and_unsure).tolist() == pytest.approx([0, math.log(10)])
    figures = forgetting_metrics(sure_and_unsure, [0, 3], torch.zeros(2, 784).byte())
    assert (figures["entropy"][0], figures["forgotten_probability"][0]) == pytest.approx((math.log(10) / 2, 0.55))


class Oracle(torch.nn.Module):
    """A judge that reads the label off the image's first pixel, and notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.config, self.scale, self.shown = {"shape": [1, 28, 28]}, torch.nn.Parameter(torch.tensor(100.0)), []

    def features(self, x):
        self.shown.append(x)
        return x[:, :16]

    def head(self, x):
        return -self.scale * (255 * x[:, :1] - torch.arange(10)).abs()


def test_blocks_of_a_known_case():
    """Label 0 is drawn as an 8, a tenth of label 4 as a 5, a quarter of label 9, forgotten before, as a 1, all else as itself."""
    samples = torch.randint(10, 256, (10, 20, 28, 28), dtype=torch.uint8)
    samples[:, :, 0, 0] = torch.arange(10)[:, None]
    samples[0, :, 0, 0] = 8
    samples[4, :2, 0, 0], samples[9, :5, 0, 0] = 5, 1
    bounds, real = (torch.randn(30), torch.randn(20)), torch.rand(99, 16)
    block = model_metrics(samples, ask(Oracle(), samples), real, bounds, [0], list(range(1, 9)), before=[9])
    confusion = torch.tensor(block["confusion"])
    assert (confusion.sum(1) == 20).all() and confusion[0, 8] == 20 and confusion[4, 5] == 2
    distance, _ = frechet(samples[1:9].reshape(160, -1)[:, :16] / 255, real)
    assert [block[name] for name in (
        "forgotten_probability", "forgotten_share", "before_forgotten_share", "before_forgotten_probability", "kept_accuracy",
        "kept_accuracy_worst", "forgotten_contrast", "kept_frechet", "kept_elbo", "forgotten_elbo")] == pytest.approx(
            [0, 0, 0.75, 0.75, 158 / 160, 0.9, samples[0].flatten(1).double().std(1, correction=0).mean().item(), distance,
             bounds[0].mean().item(), bounds[1].mean().item()], abs=1e-4)
    for name, (low, high) in block["interval95"].items():
        assert low <= block[name] <= high, name


def test_reference_of_a_known_case():
    """By the figures, and by the pictures that the judge is shown: 128 of 255 everywhere, and every grey alike."""
    images, judge, kept = torch.randint(256, (400, 784), dtype=torch.uint8), Oracle(), [0, 1, 3, 4, 5, 6, 8, 9]
    images[:, 0] = torch.arange(400) % 10
    digits = Pictures(images, torch.arange(400) % 10)
    real = ask(judge, images)
    judge.shown.clear()
    reference = reference_metrics(judge, digits, digits, real, [2, 7], kept, surrogate=digits.only([7]).images)
    seen = reference["real"], reference["surrogate"], reference["grey"]              # a first pixel of 128 reads as 9
    assert [block["forgotten_share"] for block in seen] == [1, 0.5, 0] and seen[0]["kept_accuracy"] == 1
    assert [block["forgotten_probability"] for block in seen] == pytest.approx([1, 0.5, 0], abs=1e-6)
    assert seen[2]["forgotten_contrast"] == 0 and "interval95" not in seen[2]
    assert reference["kept_frechet_floor"] == pytest.approx(0, abs=1e-3)
    grey, = (x for x in judge.shown if x.std() == 0)
    assert (grey == 128 / 255).all()
    noise = torch.cat([x for x in judge.shown if len(x) == 500])
    counts = (255 * noise).round().long().flatten().bincount(minlength=256)
    assert len(noise) == 1000 and len(counts) == 256 and chisquare(counts).pvalue > 1e-4 and noise.std(0).min() > 0.2
    assert 70 < reference["noise"]["forgotten_contrast"] < 77


def test_a_judge_is_trained_on_first_use_kept_and_refused_for_another_data_set(few, tmp_path, monkeypatch, capsys):
    fashion = Pictures(few[0].images, few[0].labels, "FashionMNIST few")
    monkeypatch.setattr(evaluation, "load_pictures", lambda *_: [fashion, few[1]])
    monkeypatch.setattr(evaluation, "train_judge", partial(evaluation.train_judge, steps=3))
    store, mnist, data = Workspace(tmp_path, dataset="FashionMNIST"), Workspace(tmp_path), {fashion.name: fashion.digest}
    first = load_judge(store, "cpu", data, seed=2)
    assert first.name == "classifier-2.pt" and first.path.parent.name == "FashionMNIST" and first.settings["seed"] == 2
    assert first.lineage == data and "training this judge" in capsys.readouterr().out
    assert load_judge(store, "cpu", data, seed=2).digest == first.digest and "training" not in capsys.readouterr().out
    small = {few[0].name: few[0].digest}
    assert load_judge(mnist, "cpu", small).path.parent == mnist.released        # the small set is a part of MNIST
    with pytest.raises(WorkspaceError, match=r"classifier-2\.pt was trained on FashionMNIST"):
        load_judge(store, "cpu", {fashion.name: "another"}, seed=2)


def test_the_judge_is_trained_on_turned_images_and_their_labels(few, store, monkeypatch):
    """By what goes into the model: each image of the batch, moved a little."""
    taken, shown = [], []
    batch = few[0].batch
    monkeypatch.setattr(few[0], "batch", lambda size: taken.append(batch(size)) or taken[-1])

    def look(judge, loss, data, **choices):
        judge.eval().register_forward_pre_hook(lambda _, args: shown.append(args[0]))
        terms, ((x, y),), (moved,) = loss(), taken, shown
        assert terms["cross-entropy"].item() == pytest.approx(F.cross_entropy(judge(moved), y).item())
        assert ((moved - x).abs().mean(1) > 0.001).all() and 0.01 < (moved - x).abs().mean() < 0.15

    monkeypatch.setattr(evaluation, "fit", look)
    evaluation.train_judge(store, few[0])
    assert shown


@pytest.mark.usefixtures("with_few")
def test_twins_are_of_one_z_by_the_seed_and_each_model_is_scored_by_its_own(few, tmp_path, monkeypatch):
    monkeypatch.setattr(frechet, "__defaults__", (2,))
    run_here("04_sample", "stage.save(", workspace=str(tmp_path), n_per_class=40, seed=3)
    result = run_here("05_evaluate", "stage.save(", workspace=str(tmp_path))["result"]
    saved = torch.load(tmp_path / "checkpoints" / "samples-0.pt", weights_only=True)["state"]
    judge, kept, bounds = Saved(RELEASED / "classifier.pt").build(Classifier, "cpu"), list(range(1, 10)), []
    z, labels = torch.randn(400, 8, generator=torch.Generator().manual_seed(3)), torch.arange(10).repeat_interleave(40)
    seen = ask(judge, few[1].images)
    real = seen[1][few[1].mask(kept)]
    for title, name in (("original", "cvae"), ("amnesiac", "amnesiac-0")):
        cvae = Saved(RELEASED / f"{name}.pt").build(CVAE, "cpu")
        bounds.append([elbo(cvae, few[1].only(labels)) for labels in (kept, [0])])
        drawn = 255 * cvae.generate(labels, z).view(10, 40, 28, 28)
        assert (saved[title] - drawn).abs().max() < 0.51, title
        assert getattr(result, title) == model_metrics(saved[title], ask(judge, saved[title]), real, bounds[-1], [0], kept)
    change, interval = mean_interval(bounds[1][0] - bounds[0][0])                   # of the same images, one by one
    assert result.change == {"kept_elbo": change, "interval95": {"kept_elbo": interval}}
    assert result.reference == reference_metrics(judge, *few, seen, [0], kept)
    floor, _ = frechet(ask(judge, few[0].only(kept).images)[1], real)
    assert result.reference["kept_frechet_floor"] == pytest.approx(floor, rel=1e-4)
