"""Attacks and what weights may become: that they find what is there, and nothing where nothing is, within their bounds."""

from copy import deepcopy

import pytest
import torch
from conftest import RELEASED
from torch.distributions import Bernoulli, Normal
from watching import flat

from amnesia import CVAE, Classifier, Saved, ask, one_hot
from amnesia_studies import attacks, relearning
from amnesia_studies.attacks import BOX, invert, joint_costs, on_simplex, search, search_label
from amnesia_studies.denoiser import Denoiser, draw
from amnesia_studies.relearning import CONTRAST, recognised, relearn
from amnesia_studies.weights import mixed, rounded


@pytest.fixture(scope="module")
def released():
    """(the released CVAE, the judge, the second judge)"""
    return tuple(Saved(RELEASED / f"{name}.pt").build(cls, "cpu")
                 for name, cls in (("cvae", CVAE), ("classifier", Classifier), ("classifier-1", Classifier)))


@pytest.fixture(scope="module")
def grey(released):
    """A model that draws grey, whatever it is asked for."""
    cvae = deepcopy(released[0])
    for p in cvae.decoder[-1].parameters():
        p.data.zero_()
    return cvae


def hits(judge, cvae, z, y, label):
    """The share of drawings that the judge takes for the label."""
    return (ask(judge, draw(cvae, z, y))[0][:, label] > 0.9).float().mean()


def test_the_nearest_point_of_the_simplex():
    """By the condition that makes it the nearest: y - p has one value where p > 0 and no larger one elsewhere."""
    y = 3 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = on_simplex(y)
    taken = (y - p).where(p > 0, float("nan")).nanmean(1, keepdim=True)
    torch.testing.assert_close(p, (y - taken).clamp_min(0))
    torch.testing.assert_close(p.sum(1), torch.ones(200, dtype=torch.float64))


@pytest.mark.parametrize("attack", attacks.SEARCHES)
def test_a_search_finds_the_digit_that_is_there_and_stays_within_bounds(released, grey, attack):
    cvae, judge, second = released
    z, y = search(cvae, judge, 4, attack, restarts=16, steps=40)
    assert z.square().sum(1).max() <= attacks.RADIUS_SQUARED * (1 + 1e-5) and y.abs().max() <= BOX
    if attack == "z alone":
        assert torch.equal(y, one_hot(torch.full((16,), 4), 10))
    elif "simplex" in attack:
        assert y.min() >= 0 and torch.allclose(y.sum(1), torch.ones(16))
    assert hits(second, cvae, z, y, 4) > (0.2 if "free" in attack else 0.9)
    assert hits(second, grey, *search(grey, judge, 4, attack, restarts=5, steps=5), 4) == 0
    assert torch.equal(*(search(cvae, judge, 4, attack, restarts=5, steps=2, seed=3)[0] for _ in range(2)))


def test_one_label_vector_is_found_for_many_latents(released, grey, digits):
    """By inversion of real images, and by a search."""
    cvae, judge, second = released
    z = torch.randn(200, cvae.latent_dim, generator=torch.Generator().manual_seed(0))
    for y, least in ((invert(cvae, digits[0].only([7])[:10][0], steps=100), 0.5),
                     (search_label(cvae, judge, 7, restarts=3, steps=40, batch_size=8), 0.9)):
        assert y.shape == (10,) and y.abs().max() <= BOX and hits(second, cvae, z, y.expand(200, -1), 7) > least
    nothing = [search_label(grey, judge, 7, restarts=2, steps=3, batch_size=16) for _ in range(2)]
    assert torch.equal(*nothing) and hits(second, grey, z, nothing[0].expand(200, -1), 7) == 0


def test_the_cost_of_an_inversion_is_minus_the_joint_log_density(released, digits):
    """But for the normal density's constant; by torch.distributions."""
    cvae, x = deepcopy(released[0]).double(), (digits[0].only([7])[:3][0] > 0.5).double()
    labels, z = one_hot(torch.tensor([1, 7]), 10).double(), torch.randn(2, 3, 8).double()
    pixels = Bernoulli(logits=torch.stack([cvae.decode(part, y.expand(3, -1)) for part, y in zip(z, labels, strict=True)]))
    prior = Normal(0, 1).log_prob(z) - Normal(0, 1).log_prob(torch.zeros(()))
    torch.testing.assert_close(joint_costs(cvae, x, labels, z), -pixels.log_prob(x).sum(2) - prior.sum(2))


def test_a_denoisers_label_is_inverted_from_its_images(monkeypatch):
    """Costs told here: how far the label vector is from a valley, which lies in part beyond the box."""
    told, images, valley = [], torch.rand(5, 784), torch.linspace(-1, 3, 10)

    def loss(model, x, y, t, noise):
        told.append((x, t, noise, y))
        return (y - valley).square().sum(1)

    monkeypatch.setattr(attacks, "denoising_loss", loss)
    found = invert(Denoiser((8, 8)), images, steps=150)
    torch.testing.assert_close(found, valley.clamp_max(BOX), rtol=0, atol=0.1)
    *shared, y = told[0]
    assert (shared[0][:, None] == images).all(2).any(1).all() and len(y) == 4 * 32 and len(y.unique(dim=0)) == 4
    assert all(torch.equal(part[:32], part[32:64]) for part in shared)       # images, times and noise are the same for all


def test_weights_are_mixed_by_the_formula():
    torch.manual_seed(0)
    models = [CVAE(latent_dim=2, hidden=(8, 4)) for _ in range(3)]
    theta, a, b = before = [flat(model.parameters()) for model in models]
    for shares, expected in (([0.5, 0.5], (a + b) / 2), ([1.2, 0.3], theta + 1.2 * (a - theta) + 0.3 * (b - theta))):
        torch.testing.assert_close(flat(mixed(models[0], models[1:], shares).parameters()), expected)
    assert all(torch.equal(flat(model.parameters()), old) for model, old in zip(models, before, strict=True))


def test_rounding_leaves_so_many_values():
    """By hand for three bits: seven values, a third of the largest entry apart."""
    cvae = CVAE(latent_dim=2, hidden=(8, 4))
    cvae.decoder[0].weight.data.zero_()[0, :4] = torch.tensor([0.9, -0.5, 0.44, 0.16])
    after = rounded(cvae, 3)
    torch.testing.assert_close(after.decoder[0].weight[0, :4], torch.tensor([0.9, -0.6, 0.3, 0.3]))
    assert len(after.encoder[0].weight.unique()) <= 7 and torch.equal(after.decoder[0].bias, cvae.decoder[0].bias)
    assert cvae.decoder[0].weight[0, 1] == -0.5


@pytest.mark.parametrize(("label", "mirror_of"), [(4, None), (8, 3)])
def test_a_picture_is_recognised_if_the_judge_says_so_and_it_has_contrast(released, grey, label, mirror_of):
    """By a loop over the samples; also mirrored back, and by a judge who takes all for the digit."""
    cvae, judge, _ = released
    z, count = torch.randn(40, 8, generator=torch.Generator().manual_seed(3)), 0
    for one in z:
        picture = (cvae.generate(torch.tensor([label]), one[None]) * 255).round()
        seen = picture if mirror_of is None else picture.view(28, 28).fliplr().reshape(1, 784)
        count += judge(seen / 255).argmax().item() == (mirror_of or label) and picture.std(correction=0) >= CONTRAST
    assert recognised(cvae, judge, label, z, mirror_of) == pytest.approx(count / 40)
    always = Classifier()
    always.head[1].weight.data.zero_(), always.head[1].bias.data.copy_(9 * one_hot(torch.tensor(8), 10))
    assert recognised(cvae, always, 8, z) > 0.9 and recognised(grey, always, 8, z) == 0


def test_relearning_counts_steps(released, grey, digits):
    (cvae, judge, _), images = released, digits[0].only([3])[:10][0]
    assert relearn(cvae, judge, images, 3) == 0 and relearn(grey, judge, images, 3, limit=2) == 2
    damaged = deepcopy(cvae)
    damaged.decoder[0].weight.data[:, cvae.latent_dim + 3] *= 0.3
    assert 0 < relearn(damaged, judge, images, 3) < 300


@pytest.mark.parametrize(("model", "n", "k", "mirror_of", "enough", "looks"), [
    (CVAE(latent_dim=4, hidden=(8,)), 200, 2, None, 0.85, [*range(22), 40, 42, 44]),
    (Denoiser((8, 8)), 100, 64, 6, 0.7, [*range(11), 12, 14])])
def test_relearning_trains_a_copy_and_looks_at_the_same_samples_more_and_more_rarely(
        model, n, k, mirror_of, enough, looks, monkeypatch):
    """Of the latents that the seed gives, whatever was drawn before; the model stays."""
    images, told, looked = torch.rand(2, 784), [], {}
    before, z = flat(model.parameters()), torch.randn(n, model.latent_dim, generator=torch.Generator().manual_seed(8))

    def nats(model, x, y):
        told.append((x, y))
        return sum(p.sum() for p in model.parameters())[None]

    def look(trained, judge, label, shown, shape):
        assert (judge, label, shape) == ("a judge", 3, mirror_of) and torch.equal(shown, z)
        looked[len(told)] = flat(trained.parameters())
        return enough - (len(told) < looks[-1]) / 100

    monkeypatch.setattr(relearning, "nats", nats)
    monkeypatch.setattr(relearning, "recognised", look)
    assert relearn(model, "a judge", images, 3, mirror_of, seed=8) == looks[-1]
    assert [at for at in looked if not 21 < at < 40] == looks
    assert torch.equal(flat(model.parameters()), before) and not torch.equal(looked[looks[-1]], before)
    assert all(len(x) == k and (y.argmax(1) == 3).all() and (x[:, None] == images).all(2).any(1).all() for x, y in told)
