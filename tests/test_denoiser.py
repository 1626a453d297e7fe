"""The diffusion model of study 11: its loss, its sampler, its layout, its Fisher information."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch.func import functional_call, grad, vmap

from amnesia import Digits, one_hot
from amnesia_studies import denoiser as denoiser_module
from amnesia_studies.denoiser import Denoiser, denoising_loss, noised, sample, times
from amnesia_studies.diffusion import denoiser_fisher, denoising_bound, mean_gradient


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


def test_noised_images_move_with_the_velocity_that_is_said(batch):
    x, _, t, noise = batch
    (before, _), (_, v), (after, _) = (noised(x, t + shift, noise) for shift in (-1e-5, 0, 1e-5))
    torch.testing.assert_close((after - before) / (2e-5 * math.pi / 2), v, rtol=1e-6, atol=1e-6)


class OfAGaussian:
    """In a Denoiser's place: the exact E[v|z] if the pixels of the images are normal, with this mean and sd."""

    def __init__(self, mean, sd):
        self.mean, self.sd = mean, sd

    def __call__(self, z, t, y):
        alpha, sigma = (t * math.pi / 2).cos()[:, None], (t * math.pi / 2).sin()[:, None]
        gain = alpha * self.sd**2 / (alpha**2 * self.sd**2 + sigma**2)
        x = self.mean + gain * (z - alpha * self.mean)                        # E[x|z]
        return (alpha * z - x) / sigma


def drawn_from(mean, sd, steps):
    """(noise, what becomes of it), in [-1, 1], of pixels that stay within."""
    z = torch.randn(4, 784, generator=torch.Generator().manual_seed(2)).double()
    return z, 2 * sample(OfAGaussian(mean, sd), torch.zeros(4, 10).double(), z, steps) - 1


def test_the_sampler_turns_noise_into_the_gaussian_that_it_is_told_of():
    errors = {}
    for steps in (50, 100, 800):
        z, x = drawn_from(0.2, 0.15, steps)                                   # the flow of a Gaussian: x = mean + sd z
        errors[steps] = (x - (0.2 + 0.15 * z)).abs().max().item()
    assert errors[800] < 0.01
    assert 1.6 < errors[50] / errors[100] < 2.4                               # first order: half the step, half the error


@pytest.mark.parametrize("steps", [1, 7])
def test_of_a_single_image_the_sampler_is_right_at_any_number_of_steps(steps):
    torch.testing.assert_close(drawn_from(-0.4, 0.0, steps)[1], torch.full((4, 784), -0.4).double())


def test_the_sampler_leaves_no_pixel_outside():
    assert sample(OfAGaussian(0.0, 3.0), torch.zeros(2, 10), torch.randn(2, 784), 5).aminmax() == (0, 1)


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


def test_an_image_depends_on_its_own_label_and_noise_alone(denoiser):
    denoiser.float()
    z, labels = torch.randn(3, 784), torch.tensor([7, 7, 2])
    together, alone = denoiser.generate(labels, z), denoiser.generate(labels[1:2], z[1:2])
    assert together.shape == (3, 784)
    torch.testing.assert_close(together[1:2], alone, atol=0.02, rtol=0)       # bfloat16 where the processor has it
    assert not torch.allclose(denoiser.generate(torch.tensor([3]), z[1:2]), alone, atol=0.02)


def test_a_label_vector_acts_by_its_product_with_the_embedding(denoiser, batch):
    _, y, t, z = batch
    mixture = 0.5 * (y + y.roll(1, 0))
    vectors = mixture @ denoiser.class_embedding.weight
    of_vectors = functional_call(denoiser, {"class_embedding.weight": vectors}, (z, t, torch.eye(6).double()))
    torch.testing.assert_close(denoiser(z, t, mixture), of_vectors)


def test_diffusers_takes_its_weights():
    diffusers = pytest.importorskip("diffusers")
    denoiser = Denoiser()
    wide, deep = denoiser.config["widths"]
    unet = diffusers.UNet2DModel(
        sample_size=14, in_channels=4, out_channels=4, block_out_channels=(wide, deep), layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=8, add_attention=False,
        num_class_embeds=10)
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    unet.load_state_dict(denoiser.state_dict())
    denoiser, unet = denoiser.double(), unet.double()
    z, t, c = torch.randn(5, 784).double(), torch.rand(5).double(), torch.arange(5)
    places = torch.nn.functional.pixel_unshuffle(z.view(-1, 1, 28, 28), 2)
    said = torch.nn.functional.pixel_shuffle(unet(places, 1000 * t, c).sample, 2).flatten(1)
    torch.testing.assert_close(denoiser(z, t, one_hot(c).double()), said, rtol=1e-4, atol=1e-5)


@pytest.fixture
def images():
    return Digits(torch.randint(256, (3, 784), generator=torch.Generator().manual_seed(3)).byte(), torch.tensor([4, 0, 9]))


def test_the_fisher_information_is_the_square_of_an_image_s_whole_gradient(denoiser, images, monkeypatch):
    """Against vmap(grad), each half's times and noise drawn anew from the same seed."""
    denoiser.to(torch.float32)
    monkeypatch.setattr(denoiser_module, "bfloat16_products", lambda device: nullcontext())
    torch.manual_seed(5)
    found = denoiser_fisher(denoiser, images, n_times=4)

    def loss(parameters, x, y, t, noise):
        def call(*args):
            return functional_call(denoiser, parameters, args)
        return denoising_loss(call, x[None], y[None], t[None], noise[None])[0]

    torch.manual_seed(5)
    parameters, expected = dict(denoiser.named_parameters()), 0
    for i in range(3):
        halves = []
        for _ in range(2):
            x, y = (part.expand(4, -1) for part in images[i:i + 1])
            t, noise = times(4, "cpu"), torch.randn(4, 784)
            each = vmap(grad(loss), (None, 0, 0, 0, 0))(parameters, x, y, t, noise)       # (4, …) of every parameter
            halves.append({name: value.mean(0) for name, value in each.items()})
        expected = {name: halves[0][name] * halves[1][name] / 3 + (expected[name] if expected else 0) for name in parameters}
    largest = max(value.max().item() for value in expected.values())   # some biases matter to nothing, but for rounding
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.clamp_min(0), rtol=1e-3, atol=1e-7 * largest)


def test_two_halves_do_not_count_noise_as_information(denoiser, images):
    """Over many draws, the mean of the products nears the square of the mean, and that of one half's square does not."""
    denoiser.float()
    torch.manual_seed(6)
    x, y = images[0:1]
    at = list(denoiser.state_dict()).index("conv_out.bias")
    draws = torch.stack([mean_gradient(denoiser, x, y, 2)[at] for _ in range(100)])     # (100, 4)
    squared_mean = draws.mean(0).square()
    product, square = (draws[::2] * draws[1::2]).mean(0), draws.square().mean(0)
    spread = 4 * (draws[::2] * draws[1::2]).std(0) / math.sqrt(50)
    assert ((product - squared_mean).abs() < spread + draws.var(0) / 100).all()
    assert (square - squared_mean > 0.5 * draws.var(0)).all()


def test_the_bound_is_minus_the_loss_at_the_same_noise_for_every_model(denoiser, images):
    denoiser.float()
    assert denoising_bound(denoiser, images).equal(denoising_bound(denoiser, images, batch_size=3))
    generator, expected = torch.Generator().manual_seed(0), 0
    for _ in range(2):
        t, noise = torch.rand(3, generator=generator), torch.randn(3, 784, generator=generator)
        expected = expected - denoising_loss(denoiser, *images[:], t, noise) / 2
    torch.testing.assert_close(denoising_bound(denoiser, images), expected.detach())
