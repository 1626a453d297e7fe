"""Selective Amnesia as notebook 03 does it by default: the kept labels are distilled from a frozen copy, not replayed.

Notebook 03 holds the same under its equations; a test demands the same weights of both.
"""

from copy import deepcopy

import torch

from amnesia.data import one_hot
from amnesia.models import bernoulli_nll, negative_elbo_terms

from .selective_amnesia import noise_pairs
from .task import penalty, some


def distilled(task, lam=0.3, batch_size=96, only=""):
    """Noise under the forgotten labels, KL to the frozen copy's decoder and encoder under the kept ones, a spring on each
    weight of stiffness lam F. In batches of notebook 03's size, which is less than the other methods take.

    only: "decoder" or "encoder" leaves the other half of the divergence out.
    """
    cvae, original, device = deepcopy(task.cvae), task.cvae, task.kept.device
    distance = penalty(cvae, original, task.fim)
    torch.manual_seed(task.seed)

    def divergence(c):
        """KL(p* || p) of the pixels given z, and KL(q* || q) of the latents given the mean image, summed: (n,) nats."""
        z, y = torch.randn(len(c), cvae.latent_dim, device=device), one_hot(c)
        with torch.no_grad():
            logits_old = original.decode(z, y)
            p_old = logits_old.sigmoid()
            mean_old, log_var_old = original.encode(p_old, y)
        decoder = bernoulli_nll(cvae.decode(z, y), p_old) - bernoulli_nll(logits_old, p_old)
        mean, log_var = cvae.encode(p_old, y)
        encoder = (log_var - log_var_old + ((mean - mean_old).square() + log_var_old.exp()) / log_var.exp() - 1).sum(1) / 2
        return {"": decoder + encoder, "decoder": decoder, "encoder": encoder}[only]

    def loss():
        c_f, c_r = some(task.forgotten, 24).repeat(2), some(task.kept, batch_size)
        forget = sum(negative_elbo_terms(cvae, noise_pairs(48, device), one_hot(c_f)))
        protect = lam / 2 * distance()
        return {"forget": forget.mean(), "remember": divergence(c_r).mean(), "protect": protect}

    return task.minimise(cvae, loss)
