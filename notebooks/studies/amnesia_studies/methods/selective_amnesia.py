"""Selective Amnesia (Heng & Soh 2023), remembering by replay, with each of its terms on a switch."""

from copy import deepcopy
from dataclasses import replace

import torch

from amnesia.data import CLASSES, one_hot
from amnesia.models import bernoulli_nll, negative_elbo_terms

from .task import replay, some, springs


def noise_pairs(n, device):
    """n images of uniform noise (n, 784), as n/2 pairs x and 1 - x, whose accidents cancel (antithetic sampling)."""
    noise = torch.rand(n // 2, 784, device=device)
    return torch.cat([noise, 1 - noise])


def selective_amnesia(task, lam=0.4, gamma=1.0, importance="fisher", posterior="encoder", reach=0.0,
                      drawn=0.75, n_forget=None):
    """Noise under the forgotten labels, replay of the kept ones, a spring on each weight (the paper's objective).

    lam, gamma: weights of the springs and of replay; with gamma = 0 nothing is replayed at all. importance: what takes
    F's place, a key of IMPORTANCE. posterior: "prior" takes p(z) for q(z|x,c) in the surrogate's bound, which is optimal
    for noise that no z can tell. reach: the surrogate is learned not at the forgotten label's corner of the simplex only,
    but with a random share of up to `reach` of a kept label mixed in. drawn: see replay. n_forget: images of noise in a
    batch, by default an eighth of those that are replayed.
    """
    cvae, original, batch = deepcopy(task.cvae), task.cvae, task.batch_size
    n_forget, n_kept, device = n_forget or 2 * max(1, batch // 16), batch if gamma else 0, task.kept.device
    protect = springs(cvae, original, IMPORTANCE[importance](task), lam)
    torch.manual_seed(task.seed)

    def loss():
        c_f, c_r = some(task.forgotten, n_forget // 2).repeat(2), some(task.kept, n_kept)
        x = torch.cat([noise_pairs(n_forget, device), replay(original, c_r, drawn)])
        y = one_hot(torch.cat([c_f, c_r]))
        if reach:
            share = reach * torch.rand(n_forget, 1, device=device)
            y[:n_forget] = (1 - share) * y[:n_forget] + share * one_hot(some(task.kept, n_forget))
        if posterior == "prior":
            z = torch.randn(n_forget, cvae.latent_dim, device=device)
            nll = bernoulli_nll(cvae.decode(z, y[:n_forget]), x[:n_forget])
            nelbo = torch.cat([nll, sum(negative_elbo_terms(cvae, x[n_forget:], y[n_forget:]))])
        else:
            nelbo = sum(negative_elbo_terms(cvae, x, y))                                 # (n_forget + n_kept,)
        remember = {"remember": gamma * nelbo[n_forget:].mean()} if n_kept else {}
        return {"forget": nelbo[:n_forget].mean(), **remember, "protect": protect()}

    return task.minimise(cvae, loss)


def as_published(task):
    """Selective Amnesia by the paper's own settings: 10,000 steps of Adam at a constant 1e-4, 256 images of noise and 256
    mean images replayed in each; the lambda of 100 on losses summed over the batch and without the half is 0.78 here."""
    task = replace(task, steps=10_000, learning_rate=1e-4, schedule="constant", batch_size=256)
    return selective_amnesia(task, lam=2 * 100 / 256, drawn=0.0, n_forget=256)


def identity(task):
    """The same importance for every weight, with the Fisher information's total: L2-SP (Li et al. 2018)."""
    share = sum(f.sum() for f in task.fim.values()) / sum(f.numel() for f in task.fim.values())
    return {name: torch.full_like(f, share) for name, f in task.fim.items()}


def batch_mean_fisher(task, n_samples=50_000, batch_size=250):
    """What public notebooks compute: the square of a batch's mean gradient, averaged over the batches, in F's place."""
    cvae, total = task.cvae, {name: torch.zeros_like(f) for name, f in task.fim.items()}
    torch.manual_seed(task.seed)
    for _ in range(n_samples // batch_size):
        labels = torch.randint(CLASSES, (batch_size,), device=task.kept.device)
        nelbo = sum(negative_elbo_terms(cvae, cvae.generate(labels), one_hot(labels))).mean()
        for value, gradient in zip(total.values(), torch.autograd.grad(nelbo, list(cvae.parameters())), strict=True):
            value += gradient.square() * batch_size / n_samples
    return total


IMPORTANCE = {"fisher": lambda task: task.fim, "identity": identity, "batch-mean": batch_mean_fisher}
