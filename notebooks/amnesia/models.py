"""The conditional VAE that learns and forgets, its negative ELBO, and the judge that scores it."""

from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import nn


def mlp(*widths):
    """Linear layers of these widths with ReLU between them."""
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*[module for layer in layers for module in (layer, nn.ReLU())][:-1])


def one_hot(labels, classes):
    """Labels (B,) as float32 (B, classes)."""
    return F.one_hot(labels, classes).float()


def picture(images, shape):
    """Flat images (..., P) as pictures: (..., H, W) where the shape (C, H, W) has one channel, else (..., C, H, W)."""
    return images.reshape(*images.shape[:-1], *(shape[1:] if shape[0] == 1 else shape))


class CVAE(nn.Module):
    """p(x|z,c) and q(z|x,c) as two mirrored MLPs, with Bernoulli pixels (the paper's Appendix on MNIST, and its code).

    It stands in notebook 01 in the same words, but for the defaults, for a reader to change. shape: of a picture, (channels,
    height, width), P pixels in all; classes: how many labels, K; config: what rebuilds the model, CVAE(**config).
    """

    def __init__(self, latent_dim=8, shape=(1, 28, 28), classes=10, hidden=(512, 256)):
        super().__init__()
        self.latent_dim, self.classes, pixels = latent_dim, classes, prod(shape)
        self.config = {"latent_dim": latent_dim, "hidden": [*hidden], "shape": [*shape], "classes": classes}
        self.encoder = mlp(pixels + classes, *hidden, 2 * latent_dim)
        self.decoder = mlp(latent_dim + classes, *reversed(hidden), pixels)

    def encode(self, x, y):
        """Mean and log-variance of q(z|x,c), each (B, latent_dim), for images (B, P) and one-hot labels (B, K)."""
        return self.encoder(torch.cat([x, y], 1)).chunk(2, 1)

    def decode(self, z, y):
        """Pixel logits (B, P) for latents (B, latent_dim) and one-hot labels (B, K)."""
        return self.decoder(torch.cat([z, y], 1))

    @torch.no_grad()
    def generate(self, labels, z=None):
        """The mean image of p(x|z,c), (B, P) in [0, 1], for labels (B,); z is drawn from the prior unless given."""
        if z is None:
            z = torch.randn(len(labels), self.latent_dim, device=labels.device)
        return self.decode(z, F.one_hot(labels, self.classes).float()).sigmoid()

    @torch.no_grad()
    def start_at(self, average):
        """Draws the average image (P,) before training. A model may do without this method."""
        self.decoder[-1].bias.copy_(average.logit())


def negative_elbo_terms(cvae, x, y, noise=None, seen=None):
    """The two terms of the negative ELBO of p(x|c), nats per image, each (B,): -log p(x|z,c) and KL(q(z|x,c) || p(z)).

    x: images (B, P) in [0, 1]; y: one-hot labels (B, K); noise: the standard normal draw (B, latent_dim) that the
    one sample z = mean + std * noise is made of, drawn here unless given; seen: what the encoder is shown in the place
    of x, for a bound with a less informed q. (Kingma & Welling 2014, Eq. 7 and App. B.) Raises ValueError for a model whose
    `decode` answers in another shape than (B, P).
    """
    mean, log_var = (part.to(x.dtype) for part in cvae.encode(x if seen is None else seen, y))  # may be rounded
    noise = torch.randn_like(mean) if noise is None else noise
    logits = cvae.decode(mean + noise * (log_var / 2).exp(), y)
    if logits.shape != x.shape:
        raise ValueError(f"decode() must give the logits of pixels in flat rows, {tuple(x.shape)}; found {tuple(logits.shape)}.")
    kl = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
    return bernoulli_nll(logits, x), kl


@torch.no_grad()
def elbo(cvae, pictures, seed=0, batch_size=1000):
    """The ELBO of each image of `pictures`, (N,) nats on the CPU, with one z an image: the same noise for every model."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for index in torch.arange(len(pictures), device=pictures.images.device).split(batch_size):
        noise = torch.randn(len(index), cvae.latent_dim, generator=generator).to(index.device)
        values.append(-sum(negative_elbo_terms(cvae, *pictures[index], noise)).cpu())
    return torch.cat(values)


def bernoulli_nll(logits, x):
    """-log p of images x (B, P) in [0, 1] under Bernoulli pixels with these logits, (B,) nats.

    The sigmoid is folded in, so that no rounded 0 meets a log. The same as F.binary_cross_entropy_with_logits, without its
    log1p, which on a CPU takes ten times as long as log: log(1 + e^-|l|) = -log sigmoid(|l|).
    """
    logits = logits.to(x.dtype)                             # products may be rounded, see device.py; sums are not
    return (F.relu(logits) - x * logits - logits.abs().sigmoid().log()).sum(1)


class Classifier(nn.Module):
    """The judge: a small CNN that never sees a generated image in training.

    Takes images (B, P) in [0, 1] of `shape`, at least 8 x 8, and returns logits (B, K); `features` are the 128 activations
    before its head. It has no batch normalisation, with which it was certain of any nonsense: on flat grey such a judge said
    8 with p = 1.
    """

    def __init__(self, shape=(1, 28, 28), classes=10):
        super().__init__()
        self.config = {"shape": [*shape], "classes": classes}   # Classifier(**config) rebuilds it
        height, width = ((side + 1) // 2 // 2 // 2 for side in shape[1:])
        self.features = nn.Sequential(
            nn.Unflatten(1, tuple(shape)),
            nn.Conv2d(shape[0], 24, 5, stride=2, padding=2), nn.ReLU(),       # MNIST: (B, 24, 14, 14)
            nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),      # (B, 48, 7, 7)
            nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),      # (B, 96, 3, 3)
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(96 * height * width, 128), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(128, classes))
        self.to(memory_format=torch.channels_last)  # in which a CPU convolves and pools twice as fast

    def forward(self, x):
        return self.head(self.features(x)).to(x.dtype)
