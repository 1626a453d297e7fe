"""The diffusion model of study 4: its loss, its sampler, its layout, its Fisher information."""

import math
from contextlib import nullcontext

import pytest
import torch
from conftest import RELEASED
from watching import flat, moved

from amnesia import Classifier, Pictures, Saved, ask, one_hot
from amnesia_studies import denoiser as module
from amnesia_studies import methods
from amnesia_studies.denoiser import Denoiser, denoising_loss, draw, sample, times
from amnesia_studies.methods import OF_DENOISERS, Task


@pytest.fixture(autouse=True)
def no_rounding(monkeypatch):
    """What is compared is computed in float32, or more, on every CPU."""
    monkeypatch.setattr(module, "bfloat16_products", lambda device: nullcontext())


def scrambled(denoiser):
    """With random weights everywhere: as it is made, its last layer answers 0 to everything."""
    for p in denoiser.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return denoiser


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return scrambled(Denoiser((8, 16)))


@pytest.fixture
def images():
    return Pictures(torch.randint(256, (3, 784), generator=torch.Generator().manual_seed(3)).byte(), torch.tensor([4, 0, 9]))


@pytest.mark.parametrize("taught", [False, True])
def test_the_loss_is_kingma_and_gao_s_weighted_elbo_image_by_image(denoiser, images, taught):
    """In float64; a teacher's answer stands in the place of the noise itself."""
    denoiser, teacher = denoiser.double(), scrambled(Denoiser((8, 8))).double() if taught else None
    x, y, t, noise = (part.double() for part in (*images[:], torch.rand(3), torch.randn(3, 784)))
    for x_, y_, t_, e, loss in zip(x, y, t, noise, denoising_loss(denoiser, x, y, t, noise, teacher), strict=True):
        t_.requires_grad_()
        alpha, sigma = torch.cos(t_ * math.pi / 2), torch.sin(t_ * math.pi / 2)
        log_snr = torch.log(alpha**2 / sigma**2)
        slope, = torch.autograd.grad(log_snr, t_)
        z = alpha * (2 * x_ - 1) + sigma * e
        noises = [sigma * z + alpha * model(z[None], t_[None], y_[None])[0] for model in (denoiser, teacher) if model]  # from v
        squares = (([*noises, e][1] - noises[0]) ** 2).sum()
        torch.testing.assert_close(loss, 0.5 * torch.exp(-log_snr / 2) * -slope * squares)


@pytest.mark.parametrize(("guidance", "v"), [(1.0, 0.3), (1.5, 0.4)])
def test_guidance_goes_so_many_times_as_far_from_what_is_said_without_a_label(guidance, v):
    """Of a network that says 0.3 with a label and 0.1 without, in one step of a quarter turn: the image is -v."""
    def says(z, t, y):
        return torch.full_like(z, 0.1) + 0.2 * y.any(1, keepdim=True)

    images = sample(says, one_hot(torch.tensor([3, 8]), 10), torch.zeros(2, 784), 1, guidance)
    torch.testing.assert_close(images, torch.full((2, 784), (1 - v) / 2))


def test_times_are_spread_evenly_from_a_random_start_in_a_random_order():
    torch.manual_seed(0)
    first, second = times(10, "cpu"), times(10, "cpu")
    torch.testing.assert_close(first.sort().values.diff(), torch.full((9,), 0.1))
    assert first.min() >= 0 and first.max() < 1 and not torch.allclose(first.min(), second.min())
    assert first.argsort().tolist() != second.argsort().tolist() != list(range(10))


def test_the_released_model_draws_the_digits_that_it_is_asked_for():
    """Two of each label, by the sampler as it stands: no other embedding of time, nor guidance, would be taken for digits."""
    denoiser = Saved(RELEASED / "denoiser.pt").build(Denoiser, "cpu")
    own, judge = module.drawings(denoiser, n=2), Saved(RELEASED / "classifier.pt").build(Classifier, "cpu")
    z, y = torch.randn(20, 784, generator=torch.Generator().manual_seed(0)), one_hot(torch.arange(10).repeat_interleave(2), 10)
    assert (ask(judge, own.images)[0].argmax(1) == own.labels).float().mean() >= 0.9
    assert module.denoising_bound(denoiser, own).mean() > -160          # its layers are joined as they were in training
    assert torch.equal(own.labels, y.argmax(1)) and torch.equal(own.images, draw(denoiser, z, y))


def test_the_fisher_information_is_the_square_of_an_image_s_whole_gradient(denoiser, images):
    """Of two gradients that share no time and no noise the product, drawn anew from the same seed; none is negative."""
    torch.manual_seed(5)
    found, expected = flat(module.denoiser_fisher(denoiser, images, n_times=4).values()), 0
    torch.manual_seed(5)
    for i in range(3):
        x, y = (part.expand(4, -1) for part in images[i:i + 1])
        one, two = (flat(torch.autograd.grad(denoising_loss(denoiser, x, y, times(4, "cpu"), torch.randn(4, 784)).sum() / 4,
                                             list(denoiser.parameters()))) for _ in range(2))
        expected = expected + one * two / 3
    torch.testing.assert_close(found, expected.clamp_min(0), rtol=1e-3, atol=1e-7 * expected.max().item())


def test_the_bound_is_minus_the_loss_at_the_same_noise_for_every_model(denoiser, images):
    generator, expected = torch.Generator().manual_seed(0), 0
    for _ in range(2):
        t, noise = torch.rand(3, generator=generator), torch.randn(3, 784, generator=generator)
        expected = expected - denoising_loss(denoiser, *images[:], t, noise) / 2
    torch.testing.assert_close(module.denoising_bound(denoiser, images), expected.detach())


@pytest.fixture
def task(denoiser):
    """To forget a 5."""
    fim = {name: torch.rand_like(p) for name, p in denoiser.named_parameters()}
    kept = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9])
    shown = Pictures(torch.randint(256, (200, 784)).byte(), torch.arange(200) % 10)
    return Task(denoiser, fim, shown, torch.tensor([5]), kept, recipe={"steps": 4, "batch_size": 16, "learning_rate": 1e-3},
                drawings=shown.only(kept.tolist()), scale=0.5)


@pytest.mark.parametrize("remember", ["distil", "replay"])
def test_the_two_terms(task, monkeypatch, remember):
    """Of grey and of the drawings, drawn again from the same seed; the springs are those of test_methods.py, by default none."""
    caught = []
    monkeypatch.setattr(Task, "minimise", lambda self, model, loss: caught.extend([model, loss]))
    OF_DENOISERS["selective amnesia"](task, remember=remember)
    denoiser, loss = caught
    moved(denoiser), torch.manual_seed(7)
    terms = loss()

    torch.manual_seed(7)
    task.drawings.restart()
    torch.randint(1, (12,)), torch.randint(9, (48,)), torch.rand(12, 784)            # labels and noise, which are not shown
    grey, of_5 = torch.full((24, 784), 0.5), one_hot(torch.full((24,), 5), 10)
    forget = denoising_loss(denoiser, grey, of_5, times(24, "cpu"), torch.randn(24, 784))
    (x, y), labelled = task.drawings.batch(48), torch.rand(48, 1) >= 0.1
    teacher = task.original if remember == "distil" else None
    kept = denoising_loss(denoiser, x, y * labelled, times(48, "cpu"), torch.randn(48, 784), teacher)
    assert labelled.any() and not labelled.all()
    torch.testing.assert_close(terms, {"forget": forget.mean(), "remember": kept.mean()})


def test_references_see_what_their_names_say(task, monkeypatch):
    seen = []
    monkeypatch.setattr(methods, "train", lambda *given: seen.append(given))
    OF_DENOISERS["retrain"](task), OF_DENOISERS["oracle"](task)
    (fresh, kept, *how), (_, replaced, *_) = seen
    assert 5 not in kept.labels and len(kept) == 180 and how == [2, 16, 1e-3]
    assert fresh is not task.original and fresh.config == task.original.config
    of_5 = replaced.labels == 5
    assert torch.equal(replaced.images[~of_5], task.train.images[~of_5]) and (replaced.images[of_5] == 128).all()


def test_a_share_of_the_labels_is_left_out_in_training(task, monkeypatch):
    """A tenth, so that the sampler can be guided; and the average follows the weights that each step began with."""
    model, told, seen, loss = Denoiser((8, 16)), [], [], module.denoising_loss
    monkeypatch.setattr(module, "denoising_loss", lambda d, x, y, *rest: (
        told.append(y), seen.append(flat(d.parameters())), loss(d, x, y, *rest))[-1])
    average = module.train(model, task.train, 4, 64, 1e-3)
    left_out = torch.cat(told).sum(1) == 0
    assert len(left_out) == 256 and 0.04 < left_out.float().mean() < 0.18
    expected = 0.998**3 * seen[0] + sum(0.002 * 0.998**(3 - i) * step for i, step in enumerate(seen) if i)
    torch.testing.assert_close(flat(average.parameters()), expected, rtol=1e-5, atol=1e-7)
    assert all(p.requires_grad for p in average.parameters())
