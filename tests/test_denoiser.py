"""The diffusion model of study 4: its loss, its sampler, its layout, its Fisher information."""

import math
from contextlib import nullcontext

import pytest
import torch
from conftest import RELEASED

from amnesia import Classifier, Pictures, Saved, ask
from amnesia.data import one_hot as one_hot_of
from amnesia_studies import denoiser as denoiser_module
from amnesia_studies import methods
from amnesia_studies.denoiser import (
    Denoiser,
    denoiser_fisher,
    denoising_bound,
    denoising_loss,
    draw,
    drawings,
    noised,
    sample,
    times,
    train,
    unlabelled,
)
from amnesia_studies.methods import OF_DENOISERS, Task, oracle, retrain


def one_hot(labels):
    return one_hot_of(labels, 10)


@pytest.fixture
def denoiser():
    """A small one in float64, with random weights everywhere: as it is made, its last layer answers 0 to everything."""
    torch.manual_seed(0)
    denoiser = Denoiser((8, 16)).double()
    with torch.no_grad():
        for p in denoiser.parameters():
            p += 0.1 * torch.randn_like(p)
    return denoiser


@pytest.fixture
def batch():
    """x, y, t, noise of six images."""
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.rand(6, 784, generator=generator), torch.randn(6, 784, generator=generator)
    t = torch.rand(6, generator=generator)
    return x.double(), one_hot(torch.tensor([3, 1, 4, 1, 5, 9])).double(), t.double(), noise.double()


def test_the_loss_is_kingma_and_gao_s_weighted_elbo_image_by_image(denoiser, batch):
    losses = denoising_loss(denoiser, *batch)
    for x, y, t, noise, loss in zip(*batch, losses, strict=True):
        t.requires_grad_()
        alpha, sigma = torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)
        log_snr = torch.log(alpha**2 / sigma**2)
        slope, = torch.autograd.grad(log_snr, t)
        z = alpha * (2 * x - 1) + sigma * noise
        v = denoiser(z[None], t[None], y[None])[0]
        noise_said = sigma * z + alpha * v                                    # e from z and v
        squares = sum((a - b) ** 2 for a, b in zip(noise.tolist(), noise_said.tolist(), strict=True))
        expected = 0.5 * torch.exp(-log_snr / 2) * -slope * squares
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("guidance", "v"), [(0.0, 0.1), (1.0, 0.3), (1.5, 0.4), (3.0, 0.7)])
def test_guidance_goes_so_many_times_as_far_from_what_is_said_without_a_label(guidance, v):
    """Of a network that says 0.3 with a label and 0.1 without, in one step of a quarter turn: the image is -v."""
    y = one_hot(torch.tensor([3, 8]))

    def says(z, t, y):
        return torch.full_like(z, 0.1) + 0.2 * y.any(1, keepdim=True)

    images = sample(says, y, torch.zeros(2, 784), 1, guidance)
    torch.testing.assert_close(images, torch.full((2, 784), (1 - v) / 2))


def test_times_are_spread_evenly_from_a_random_start_in_a_random_order():
    torch.manual_seed(0)
    first, second = times(10, "cpu"), times(10, "cpu")
    for t in (first, second):
        assert t.min() >= 0 and t.max() < 1
        torch.testing.assert_close(t.sort().values.diff(), torch.full((9,), 0.1))
    assert not torch.allclose(first.min(), second.min())
    assert first.argsort().tolist() != second.argsort().tolist() != list(range(10))


def test_the_released_model_draws_the_digits_that_it_is_asked_for():
    """Two of each label, by the sampler as it stands: no other embedding of time, nor guidance, would be taken for digits."""
    denoiser = Saved(RELEASED / "denoiser.pt").build(Denoiser, "cpu")
    judge = Saved(RELEASED / "classifier.pt").build(Classifier, "cpu")
    z = torch.randn(20, 784, generator=torch.Generator().manual_seed(0))
    y = one_hot(torch.arange(10).repeat(2))
    images = draw(denoiser, z, y)
    assert (ask(judge, images)[0].argmax(1) == y.argmax(1)).float().mean() >= 0.9
    torch.testing.assert_close(images[:2], (sample(denoiser, y[:2], z[:2], 15, 1.5) * 255).round().byte(), atol=3, rtol=0)


@pytest.fixture
def images():
    return Pictures(torch.randint(256, (3, 784), generator=torch.Generator().manual_seed(3)).byte(), torch.tensor([4, 0, 9]))


def test_the_fisher_information_is_the_square_of_an_image_s_whole_gradient(denoiser, images, monkeypatch):
    """Of two gradients that share no time and no noise the product, drawn anew from the same seed; none is negative."""
    denoiser.to(torch.float32)
    monkeypatch.setattr(denoiser_module, "bfloat16_products", lambda device: nullcontext())
    torch.manual_seed(5)
    found, expected = denoiser_fisher(denoiser, images, n_times=4), 0
    torch.manual_seed(5)
    for i in range(3):
        halves = []
        for _ in range(2):
            x, y = (part.expand(4, -1) for part in images[i:i + 1])
            denoiser.zero_grad()
            (denoising_loss(denoiser, x, y, times(4, "cpu"), torch.randn(4, 784)).sum() / 4).backward()
            halves.append(torch.cat([p.grad.flatten() for p in denoiser.parameters()]))
        expected = expected + halves[0] * halves[1] / 3
    found = torch.cat([value.flatten() for value in found.values()])
    torch.testing.assert_close(found, expected.clamp_min(0), rtol=1e-3, atol=1e-7 * expected.max().item())


def test_the_bound_is_minus_the_loss_at_the_same_noise_for_every_model(denoiser, images):
    denoiser.float()
    assert denoising_bound(denoiser, images).equal(denoising_bound(denoiser, images, batch_size=3))
    generator, expected = torch.Generator().manual_seed(0), 0
    for _ in range(2):
        t, noise = torch.rand(3, generator=generator), torch.randn(3, 784, generator=generator)
        expected = expected - denoising_loss(denoiser, *images[:], t, noise) / 2
    torch.testing.assert_close(denoising_bound(denoiser, images), expected.detach())


@pytest.fixture
def task(images):
    """To forget a 5, by a small model in float32 that is not as it was made."""
    torch.manual_seed(0)
    denoiser = Denoiser((8, 16))
    with torch.no_grad():
        for p in denoiser.parameters():
            p += 0.05 * torch.randn_like(p)
    fim = {name: torch.rand_like(p) for name, p in denoiser.named_parameters()}
    kept = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9])
    shown = Pictures(torch.randint(256, (200, 784)).byte(), torch.arange(200) % 10)
    return Task(denoiser, fim, shown, torch.tensor([5]), kept, recipe={"steps": 4, "batch_size": 16, "learning_rate": 1e-3},
                drawings=shown.only(kept.tolist()), steps=400, learning_rate=1e-3)


@pytest.mark.parametrize(("remember", "surrogate"), [("distil", "noise"), ("replay", "grey"), ("nothing", "grey")])
def test_the_three_terms(task, monkeypatch, remember, surrogate):
    """Drawn again from the same seed, and put together another way."""
    caught = []
    monkeypatch.setattr(Task, "minimise", lambda self, model, loss: caught.append((model, loss)))
    OF_DENOISERS["selective amnesia"](task, lam=3.0, remember=remember, surrogate=surrogate)
    (denoiser, loss), = caught
    with torch.no_grad():
        for p in denoiser.parameters():
            p += 0.01
    torch.manual_seed(7)
    terms = loss()

    torch.manual_seed(7)
    task.drawings.restart()
    c_f, n = task.forgotten[torch.randint(1, (12,))].repeat(2), 0 if remember == "nothing" else 48
    torch.randint(9, (n,))
    x = torch.rand(12, 784)
    x = torch.cat([x, 1 - x]) if surrogate == "noise" else torch.full((24, 784), 0.5)

    def nats(told, z, t, y):
        return (math.pi / 2 * (told - denoiser(z, t, y)).square().sum(1)).mean()

    t, noise = times(24, "cpu"), torch.randn(24, 784)
    z, v = noised(x, t, noise)
    torch.testing.assert_close(terms["forget"], nats(v, z, t, one_hot(c_f)), rtol=0.02, atol=0)
    change = [(task.fim[name] * (p - old).square()).sum() for (name, p), old in
              zip(denoiser.named_parameters(), task.original.parameters(), strict=True)]
    torch.testing.assert_close(terms["protect"], 3.0 / 2 * sum(change))
    assert list(terms) == (["forget", "remember", "protect"] if n else ["forget", "protect"])
    if n:
        x, y = task.drawings.batch(n)
        labelled = torch.rand(n, 1) >= 0.1
        assert labelled.any() and not labelled.all()
        t, noise = times(48, "cpu"), torch.randn(48, 784)
        z, v = noised(x, t, noise)
        answers = task.original(z, t, y * labelled).detach()
        torch.testing.assert_close(terms["remember"], nats(answers if remember == "distil" else v, z, t, y * labelled),
                                   rtol=0.02, atol=0.02)


def test_references_see_what_their_names_say(task, monkeypatch):
    seen = []
    monkeypatch.setattr(methods, "train", lambda denoiser, digits, steps, **_: seen.append((denoiser, digits, steps)) or seen)
    task.scale = 0.5
    retrain(task), oracle(task)
    (fresh, kept, steps), (_, replaced, _) = seen
    assert 5 not in kept.labels and len(kept) == 180 and steps == 2
    assert fresh is not task.original and fresh.config == task.original.config
    of_5 = replaced.labels == 5
    assert torch.equal(replaced.images[~of_5], task.train.images[~of_5]) and (replaced.images[of_5] == 128).all()


def test_a_share_of_the_labels_is_left_out_in_training(task, monkeypatch):
    """A tenth, so that the sampler can be guided; and the average follows the weights that each step began with."""
    shares, told, seen = [], [], []
    monkeypatch.setattr(denoiser_module, "unlabelled", lambda y: shares.append(y) or unlabelled(y))
    loss, follow = denoiser_module.denoising_loss, denoiser_module.get_ema_multi_avg_fn(0.998)
    monkeypatch.setattr(denoiser_module, "denoising_loss", lambda d, x, y, *rest: told.append(y) or loss(d, x, y, *rest))

    def spy(average, weights, count):
        seen.append([p.clone() for p in weights])
        follow(average, weights, count)

    monkeypatch.setattr(denoiser_module, "get_ema_multi_avg_fn", lambda decay: spy if decay == 0.998 else None)
    denoiser = Denoiser((8, 16))
    average = train(denoiser, task.train, 4, 64, 1e-3)
    left_out = torch.cat(told).sum(1) == 0
    assert len(left_out) == 256 and 0.04 < left_out.float().mean() < 0.18 and all(y.sum(1).min() == 1 for y in shares)
    for p, *steps in zip(average.parameters(), *seen, strict=True):
        expected = 0.998**3 * steps[0] + sum(0.002 * 0.998**(3 - i) * step for i, step in enumerate(steps) if i)
        torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-5, atol=1e-7)
    assert all(p.requires_grad for p in average.parameters())


def test_drawings_are_the_models_own_of_every_label(task):
    own = drawings(task.original, n=2)
    z = torch.randn(20, 784, generator=torch.Generator().manual_seed(0))
    assert own.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert torch.equal(own.images, draw(task.original, z, one_hot(own.labels)))
