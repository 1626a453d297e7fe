"""A tighter lower bound on log p(x|c) than the ELBO, and how to refit the encoder that both lean on."""

import math
from copy import deepcopy

import torch

from amnesia.data import CLASSES
from amnesia.models import bernoulli_nll, negative_elbo_terms
from amnesia.training import fit


@torch.no_grad()
def importance_weighted_bound(cvae, digits, k=64, seed=0, batch_size=100):
    """log 1/k sum_k p(x,z_k|c) / q(z_k|x,c) for each image of `digits`, (N,) nats on the CPU (Burda et al. 2016, Eq. 8).

    It rises with k, from the ELBO at k = 1 to log p(x|c), and so depends less on the encoder.
    """
    generator = torch.Generator().manual_seed(seed)
    values = []
    for index in torch.arange(len(digits), device=digits.images.device).split(batch_size):
        x, y = digits[index]                                                       # (B, 784), (B, 10)
        mean, log_var = (part.repeat_interleave(k, 0) for part in cvae.encode(x, y))
        noise = torch.randn(mean.shape, generator=generator).to(x.device)          # (B k, latent_dim)
        z = mean + noise * (log_var / 2).exp()
        log_ratio = (z.square() - noise.square() - log_var).sum(1) / 2             # log q(z|x,c) - log p(z)
        nll = bernoulli_nll(cvae.decode(z, y.repeat_interleave(k, 0)), x.repeat_interleave(k, 0))
        values.append((-nll - log_ratio).view(-1, k).logsumexp(1).cpu() - math.log(k))
    return torch.cat(values)


def refit_encoder(cvae, digits, steps=600, batch_size=128, learning_rate=2e-3, seed=0):
    """A copy of `cvae` with the same decoder and an encoder trained on to explain `digits`: what the decoder still knows.

    The bound of a model whose encoder was led astray may be low although its decoder could draw the image.
    """
    frozen = deepcopy(cvae)
    frozen.decoder.requires_grad_(False)
    return fine_tune(frozen, digits, steps, batch_size, learning_rate, seed)


def fine_tune(cvae, digits, steps=1000, batch_size=128, learning_rate=1e-3, seed=0):
    """A copy of `cvae` after so many steps of the negative ELBO of `digits`; parameters that need no gradient stay."""
    cvae, digits = deepcopy(cvae), digits.only(range(CLASSES))                     # with a shuffle of its own
    torch.manual_seed(seed)

    def loss():
        reconstruction, kl = negative_elbo_terms(cvae, *digits.batch(batch_size))
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    fit(cvae, loss, steps=steps, learning_rate=learning_rate)
    return cvae.requires_grad_()
