"""A class-conditional diffusion model of pixels: its network, its loss, its sampler, and how it is trained; and what the
studies ask of a CVAE and of this model in the same words, draw() and nats().

An image x in [-1, 1] and noise e of the standard normal make z = cos(a) x + sin(a) e, where the angle a = t pi/2 goes from
the image at t = 0 to the noise at t = 1. As a grows, z moves with the velocity v = dz/da = cos(a) e - sin(a) x. The network
says which v is to be expected at z (v-prediction: Salimans & Ho 2022, App. D; the cosine schedule: Nichol & Dhariwal 2021).
"""

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from amnesia import Pictures, fit, negative_elbo_terms, one_hot
from amnesia.device import bfloat16_products


class ResnetBlock2D(nn.Module):
    """Two convolutions and a way around them; the embedding of time and label is added in between."""

    def __init__(self, n_in, n_out, n_embedding):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(n_embedding, n_out)
        self.norm2, self.conv2 = nn.GroupNorm(8, n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)                          # at first each block passes on what it is given

    def forward(self, x, embedding):
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(embedding)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Denoiser(nn.Module):
    """A small UNet at 14 x 14 and 7 x 7, of which four pixels are one place with four channels.

    Named as `UNet2DModel` of the package diffusers is. The label enters as a vector: its product with class_embedding is
    added to the embedding of time.
    """

    latent_dim, classes = 28 * 28, 10                              # of the noise that an image is drawn from

    def __init__(self, widths=(32, 64)):
        super().__init__()
        self.config = {"widths": list(widths)}                     # Denoiser(**config) rebuilds it
        wide, deep = widths
        n = 4 * wide
        self.conv_in = nn.Conv2d(4, wide, 3, padding=1)
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(wide, n), "linear_2": nn.Linear(n, n)})
        self.class_embedding = nn.Embedding(self.classes, n)

        def block(*widths, **samplers):
            resnets = nn.ModuleList([ResnetBlock2D(n_in, n_out, n) for n_in, n_out in widths])
            convs = {name: nn.ModuleList([nn.ModuleDict({"conv": conv})]) for name, conv in samplers.items()}
            return nn.ModuleDict({"resnets": resnets, **convs})

        self.down_blocks = nn.ModuleList([
            block((wide, wide), downsamplers=nn.Conv2d(wide, wide, 3, stride=2, padding=1)), block((wide, deep))])
        self.mid_block = block((deep, deep), (deep, deep))
        self.up_blocks = nn.ModuleList([
            block((2 * deep, deep), (deep + wide, deep), upsamplers=nn.Conv2d(deep, deep, 3, padding=1)),
            block((deep + wide, wide), (2 * wide, wide))])
        self.conv_norm_out, self.conv_out = nn.GroupNorm(8, wide), nn.Conv2d(wide, 4, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        self.to(memory_format=torch.channels_last)                 # the order in memory that convolutions are fastest in

    def forward(self, z, t, y):
        """The velocity v (B, 784) to be expected at the noised images z (B, 784), times t (B,) in [0, 1], for label
        vectors y (B, 10); y = 0 says no label. In bfloat16 where a CPU has units for it."""
        with bfloat16_products(z.device):
            n = self.conv_in.out_channels // 2
            rates = 1000 * torch.exp(-math.log(10_000) * torch.arange(n, device=z.device) / n)
            angles = t[:, None] * rates.to(t.dtype)
            first, second = self.time_embedding.values()
            time = second(F.silu(first(torch.cat([angles.cos(), angles.sin()], 1))))
            embedding = F.silu(time + y @ self.class_embedding.weight)

            (to_deep, deep), (to_wide, wide) = self.down_blocks, self.up_blocks
            first = self.conv_in(F.pixel_unshuffle(z.view(-1, 1, 28, 28), 2))      # (B, wide, 14, 14)
            second = to_deep["resnets"][0](first, embedding)
            third = to_deep["downsamplers"][0]["conv"](second)                     # (B, wide, 7, 7)
            fourth = h = deep["resnets"][0](third, embedding)                      # (B, deep, 7, 7)
            for resnet in self.mid_block["resnets"]:
                h = resnet(h, embedding)
            for resnet, skipped in zip(to_wide["resnets"], (fourth, third), strict=True):
                h = resnet(torch.cat([h, skipped], 1), embedding)
            h = to_wide["upsamplers"][0]["conv"](F.interpolate(h, scale_factor=2.0))
            for resnet, skipped in zip(wide["resnets"], (second, first), strict=True):
                h = resnet(torch.cat([h, skipped], 1), embedding)
            h = self.conv_out(F.silu(self.conv_norm_out(h)))
            return F.pixel_shuffle(h, 2).flatten(1).to(z.dtype)


def times(n, device):
    """n times in [0, 1), evenly spread from a random start, so that one batch's mean differs little from the next's
    (Kingma et al. 2021, App. I.1); in a random order."""
    return (torch.rand(1, device=device) + torch.randperm(n, device=device) / n) % 1


def denoising_loss(denoiser, x, y, t, noise, teacher=None):
    """An unbiased estimate of the weighted negative ELBO of each image x (B, 784) given the label vectors y (B, 10), (B,)
    nats, from one time t (B,) and one noise (B, 784) each. teacher: another Denoiser, whose answer stands in v's place.

    L = 1/2 E_t[w(l) (-dl/dt) |e - e'|^2] with the log signal-to-noise ratio l = 2 log cot(t pi/2), and the weight
    w = exp(-l/2) = tan(t pi/2), where the ELBO itself has w = 1 (Kingma & Gao 2023, Eq. 2 and 13). In terms of v this is
    pi/2 E_t |v - v'|^2.
    """
    cos, sin, x = (t * math.pi / 2).cos()[:, None], (t * math.pi / 2).sin()[:, None], 2 * x - 1
    z, v = cos * x + sin * noise, cos * noise - sin * x
    if teacher:
        with torch.no_grad():
            v = teacher(z, t, y)
    return math.pi / 2 * (v - denoiser(z, t, y)).square().sum(1)


@torch.no_grad()
def sample(denoiser, y, z, steps=15, guidance=1.5):
    """Images (B, 784) in [0, 1] for label vectors y (B, 10) from noise z (B, 784): DDIM (Song et al. 2021), no other chance.

    A step turns z by the angle d = pi/2 / steps, as if its image and its noise stayed what they are: cos(d) z - sin(d) v.
    guidance: v is moved so many times as far from what the network says without a label as with it (classifier-free
    guidance, Ho & Salimans 2022); 1 is none.
    """
    if len(z) > 1000:                                              # which would take gigabytes
        parts = zip(y.split(1000), z.split(1000), strict=True)
        return torch.cat([sample(denoiser, *part, steps, guidance) for part in parts])
    d = math.pi / 2 / steps
    for i in range(steps, 0, -1):
        t = torch.full((len(z),), i / steps, device=z.device, dtype=z.dtype)
        v = denoiser(z, t, y)
        if guidance != 1:
            unconditional = denoiser(z, t, torch.zeros_like(y))
            v = unconditional + guidance * (v - unconditional)
        z = math.cos(d) * z - math.sin(d) * v
    return (z.clamp(-1, 1) + 1) / 2


def nats(model, x, y, **taught):
    """What a model is trained to lower, for each image x (B, 784) under label vectors y (B, 10): (B,) nats. That is a CVAE's
    negative ELBO, from one draw of z; a Denoiser's loss, from one time and one noise, and `taught` by a teacher."""
    if isinstance(model, Denoiser):
        return denoising_loss(model, x, y, times(len(x), x.device), torch.randn_like(x), **taught)
    return sum(negative_elbo_terms(model, x, y))


def to_bytes(images):
    """Images in [0, 1] as bytes."""
    return (images * 255).round().byte()


def latents(model, n, seed):
    """n latents of the prior, or pictures of noise, by the seed: (n, latent_dim) on the model's device."""
    z = torch.randn(n, model.latent_dim, generator=torch.Generator().manual_seed(seed))
    return z.to(next(model.parameters()).device)


@torch.no_grad()
def draw(model, z, y, **guided):
    """The images that a model draws from latents or noise z (N, latent_dim) under label vectors y (N, 10): bytes (N, 784).
    guided: what sample() may be told of a Denoiser."""
    return to_bytes(sample(model, y, z, **guided) if isinstance(model, Denoiser) else model.decode(z, y).sigmoid())


def sample_all(model, n, seed=0):
    """n samples of each label in turn, bytes (K n, P), from noise or latents by the seed: the same for every model."""
    z = latents(model, n * model.classes, seed)
    labels = torch.arange(model.classes, device=z.device).repeat_interleave(n)
    return draw(model, z, one_hot(labels, model.classes))


def train(denoiser, digits, steps, batch_size, learning_rate):
    """Trains `denoiser` on `digits`; returns the model with the exponential average of its weights over the last steps, which
    draws better."""
    average = deepcopy(denoiser).requires_grad_(False)
    weights, follow = [list(model.parameters()) for model in (average, denoiser)], get_ema_multi_avg_fn(0.998)

    def loss():
        follow(*weights, None)
        x, y = digits.batch(batch_size)
        return {"denoise": nats(denoiser, x, unlabelled(y)).mean()}

    fit(denoiser, loss, steps=steps, learning_rate=learning_rate, data=digits, title="train")
    return average.requires_grad_(True)


def unlabelled(y, share=0.1):
    """Label vectors y (B, 10), of which a random share became 0: what is learned there guides the sampler."""
    return y * (torch.rand(len(y), 1, device=y.device) >= share)


def drawings(denoiser, n=200):
    """What the model draws, n images a label, as Pictures: they stand for the training data in all that follows."""
    images = sample_all(denoiser, n)
    return Pictures(images, torch.arange(denoiser.classes, device=images.device).repeat_interleave(n), "drawings")


def mean_gradient(denoiser, x, y, n_times):
    """The gradient of one image's loss, the mean over so many times and noises: x (1, 784), y (1, 10)."""
    loss = nats(denoiser, x.expand(n_times, -1), y.expand(n_times, -1)).mean()
    return torch.autograd.grad(loss, list(denoiser.parameters()))


def denoiser_fisher(denoiser, images, n_times=8):
    """F_i = E[(dL/dtheta_i)^2] over these Pictures, where L is an image's loss at all times: a dict like the model's
    parameters.

    A mean over a few times is L's gradient and some noise, whose square would count as information. The product of two
    means that share nothing is unbiased. It may be negative by chance, and then is cut off at 0, after all images.
    """
    total = {name: torch.zeros_like(p) for name, p in denoiser.named_parameters()}
    for i in range(len(images)):
        two = [mean_gradient(denoiser, *images[i:i + 1], n_times) for _ in range(2)]
        for value, *gradients in zip(total.values(), *two, strict=True):
            value.addcmul_(*gradients)
    return {name: (value / len(images)).clamp_min(0) for name, value in total.items()}


@torch.no_grad()
def denoising_bound(denoiser, digits, seed=0, n_times=2, batch_size=1000):
    """Minus the weighted loss of each image of `digits`, (N,) nats on the CPU, up to a constant that no model changes: a
    lower bound on log p(x|c), averaged over noised images (Kingma & Gao 2023). Times and noise are the same for every model.
    """
    generator, values = torch.Generator().manual_seed(seed), []
    for index in torch.arange(len(digits), device=digits.images.device).split(batch_size):
        x, y = digits[index]
        draws = [(torch.rand(len(x), generator=generator), torch.randn(x.shape, generator=generator)) for _ in range(n_times)]
        costs = sum(denoising_loss(denoiser, x, y, t.to(x.device), noise.to(x.device)) for t, noise in draws)
        values.append(-costs.cpu() / n_times)
    return torch.cat(values)
