"""Attacks: their bounds, that they find what is there, that they find nothing where nothing is, and the files of a run."""

from copy import deepcopy

import pytest
import torch

from amnesia import CVAE, Classifier, Workspace, one_hot
from amnesia.storage.files import Saved
from amnesia.storage.workspace import REPOSITORY
from amnesia_studies import attacks
from amnesia_studies.attacks import (
    BOX,
    RADIUS_SQUARED,
    SEARCHES,
    Inversion,
    cheapest,
    draw,
    in_the_box,
    invert,
    on_simplex,
    search,
    search_label,
    successes,
    within_ball,
)
from amnesia_studies.bounds import fine_tune
from amnesia_studies.sweep import images_from_text, images_to_text

RELEASED = REPOSITORY / "checkpoints" / "released"


@pytest.fixture(scope="module")
def released():
    """(the released CVAE, the judge, the second judge)"""
    return tuple(Saved(RELEASED / f"{name}.pt").build(cls, "cpu")
                 for name, cls in (("cvae", CVAE), ("classifier", Classifier), ("classifier-1", Classifier)))


@pytest.fixture(scope="module")
def grey(released):
    """A model that draws grey, whatever it is asked for."""
    cvae = deepcopy(released[0])
    with torch.no_grad():
        cvae.decoder[-1].weight.zero_()
        cvae.decoder[-1].bias.zero_()
    return cvae


def test_the_nearest_point_of_the_simplex():
    """Beside the condition that makes it the nearest: y - p has one value where p > 0 and no larger one elsewhere."""
    y = 3 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = on_simplex(y)
    torch.testing.assert_close(p.sum(1), torch.ones(200, dtype=torch.float64))
    for row, point in zip(y, p, strict=True):
        taken = (row - point)[point > 0]
        assert point.min() >= 0 and (taken.max() - taken.min()) < 1e-12 and ((row - point) <= taken.max() + 1e-12).all()
    torch.testing.assert_close(on_simplex(p), p)


def test_the_ball():
    z = torch.tensor([[6.0, 0.0], [3.0, 3.0]])
    torch.testing.assert_close(within_ball(z), torch.tensor([[RADIUS_SQUARED**0.5, 0.0], [3.0, 3.0]]))


@pytest.mark.parametrize("attack", SEARCHES)
def test_a_search_finds_the_digit_that_is_there_and_stays_within_bounds(released, grey, attack):
    cvae, judge, second = released
    z, y = search(cvae, judge, 4, attack, restarts=24, steps=60)
    assert z.square().sum(1).max() <= RADIUS_SQUARED * (1 + 1e-5) and y.abs().max() <= BOX
    if attack == "z alone":
        assert torch.equal(y, one_hot(torch.full((24,), 4)))
    elif "simplex" in attack:
        assert y.min() >= 0 and torch.allclose(y.sum(1), torch.ones(24))
    assert successes(second, draw(cvae, z, y), 4).float().mean() > (0.2 if "free" in attack else 0.9)
    assert not successes(second, draw(grey, *search(grey, judge, 4, attack, restarts=5, steps=5)), 4).any()
    again = search(cvae, judge, 4, attack, restarts=24, steps=60)
    assert torch.equal(z, again[0]) and torch.equal(y, again[1])


def test_an_unknown_attack_is_refused(released):
    with pytest.raises(ValueError, match=r"attack='hammer'.*z alone"):
        search(*released[:2], 4, "hammer")


def test_inversion_finds_a_label_that_draws_the_images(released, digits):
    cvae, _, second = released
    y = invert(cvae, digits[0].only([7])[:10][0], restarts=4, steps=150)
    z = torch.randn(200, cvae.latent_dim, generator=torch.Generator().manual_seed(0))
    assert y.shape == (10,) and y.abs().max() <= BOX
    assert successes(second, draw(cvae, z, y.expand(200, -1)), 7).float().mean() > 0.5


def test_the_cost_of_an_inversion_is_minus_the_joint_log_density(released, digits):
    """But for the normal density's constant; by torch.distributions. Labels that are fixed stay."""
    cvae, x = deepcopy(released[0]).double(), (digits[0].only([7])[:3][0] > 0.5).double()
    labels = one_hot(torch.tensor([1, 7])).double()
    inversion = Inversion(cvae, x, labels.clone(), fixed=True)
    before = inversion.step()
    for _ in range(30):
        inversion.step()
    costs, z = inversion.costs(), inversion.z
    assert torch.equal(inversion.y, labels) and (costs < before).all() and costs[1].mean() < costs[0].mean()
    for i, label in enumerate(labels):
        for j, image in enumerate(x):
            pixels = torch.distributions.Bernoulli(logits=cvae.decode(z[i, j:j + 1], label[None])[0])
            prior = torch.distributions.Normal(torch.zeros(8), 1)
            joint = pixels.log_prob(image).sum() + (prior.log_prob(z[i, j]) - prior.log_prob(torch.zeros(8))).sum()
            assert costs[i, j].item() == pytest.approx(-joint.item(), rel=1e-6)
    assert in_the_box(500).abs().max() <= BOX and in_the_box(500).std() == pytest.approx(BOX / 3**0.5, rel=0.05)


def test_one_label_vector_is_found_for_many_latents(released, grey):
    cvae, judge, second = released
    z = torch.randn(200, cvae.latent_dim, generator=torch.Generator().manual_seed(0))
    y = search_label(cvae, judge, 7, restarts=4, steps=60, batch_size=16)
    assert y.shape == (10,) and y.abs().max() <= BOX
    assert successes(second, draw(cvae, z, y.expand(200, -1)), 7).float().mean() > 0.9
    nothing = search_label(grey, judge, 7, restarts=2, steps=3, batch_size=16)
    assert not successes(second, draw(grey, z, nothing.expand(200, -1)), 7).any()
    assert torch.equal(y, search_label(cvae, judge, 7, restarts=4, steps=60, batch_size=16))


def test_the_cheapest_label_vector_is_the_best_of_the_restarts_at_the_walls_of_the_box():
    """Of costs with one valley, outside the box, and of a ridge, on whose wrong side every restart but one begins."""
    asked, valley = [], torch.tensor([3.0, -2.5, *[0.5] * 8])

    def costs(y, n):
        asked.append(n)
        return (y - valley).square().sum(1)

    found = cheapest(in_the_box(3, torch.Generator().manual_seed(0)), costs, 200, 7, 0.1)
    torch.testing.assert_close(found, valley.clamp(-BOX, BOX), rtol=0, atol=0.02)
    assert asked == [7] * 200 + [70] and not found.requires_grad
    starts = torch.full((4, 10), 0.5)
    starts[2, 0] = -0.5
    found = cheapest(starts, lambda y, n: -y[:, 0].abs() + 0.5 * (y[:, 0] > 0), 30, 1, 0.1)
    assert found[0] == -BOX


def test_fine_tuning_improves_a_copy(released, digits):
    cvae, kept = released[0], digits[0].only([1, 2])
    kept.order, before = None, deepcopy(cvae.state_dict())
    tuned = fine_tune(cvae, kept, steps=5)
    assert all(torch.equal(before[name], value) for name, value in cvae.state_dict().items())
    assert not torch.equal(tuned.decoder[-1].bias, cvae.decoder[-1].bias) and kept.order is None


def test_pictures_survive_the_log():
    images = torch.randint(256, (3, 784), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(images_from_text(images_to_text(images)), images.view(3, 28, 28))


def test_the_second_judge_is_another_one_of_the_same_kind(released, digits, tmp_path):
    _, judge, second = released
    x, labels = digits[1].images[:1000], digits[1].labels[:1000]
    right = [(model(x.float() / 255).argmax(1) == labels).float().mean().item() for model in (judge, second)]
    assert min(right) > 0.985 and not torch.equal(judge.head[1].weight, second.head[1].weight)
    settings = Workspace(tmp_path).load("classifier-1.pt").settings
    assert settings == {**Workspace(tmp_path).load("classifier.pt").settings, "seed": 1}


def test_a_success_is_what_the_judge_is_nine_tenths_sure_of(monkeypatch):
    """Of the label that is asked for: not of another, however sure."""
    p = torch.full((4, 10), 0.01)
    p[0, 4], p[1, 4], p[2, 4], p[3, 5] = 0.89, 0.91, 0.5, 0.95
    monkeypatch.setattr(attacks, "ask", lambda judge, images: (p, None))
    assert successes(None, torch.zeros(4, 784, dtype=torch.uint8), 4).tolist() == [False, True, False, False]
