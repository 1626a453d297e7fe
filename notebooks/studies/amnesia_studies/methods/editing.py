"""Methods that change a few chosen weights only."""

from copy import deepcopy

import torch

from amnesia.data import one_hot
from amnesia.fisher import diagonal_fisher
from amnesia.models import bernoulli_nll

from .task import some


@torch.no_grad()
def dampening(task, alpha=3.0, lam=1.0):
    """Selective synaptic dampening (Foster et al. 2024): theta <- theta * min(lam F / F_f, 1) where F_f > alpha F.

    F_f is the Fisher information of the forgotten labels' generated images alone. Nothing is trained.
    """
    cvae = deepcopy(task.cvae)
    torch.manual_seed(task.seed)
    with torch.enable_grad():
        theirs = diagonal_fisher(cvae, 5000 * len(task.forgotten), labels=task.forgotten)
    for name, p in cvae.named_parameters():
        factor = (lam * task.fim[name] / theirs[name].clamp_min(1e-30)).clamp_max(1)
        p.mul_(torch.where(theirs[name] > alpha * task.fim[name], factor, 1.0))
    return cvae


def columns_only(cvae, labels):
    """The same model, in which nothing can be trained but the decoder's input column of each of these labels."""
    columns = torch.zeros_like(cvae.decoder[0].weight)
    columns[:, cvae.latent_dim + labels] = 1
    for name, p in cvae.named_parameters():
        p.requires_grad_(name == "decoder.0.weight")
    cvae.decoder[0].weight.register_hook(lambda gradient: gradient * columns)
    return cvae


def label_edit(task):
    """Trains the decoder's input column of each forgotten label towards noise, z from the prior, and nothing else.

    Every output for a kept label stays as it was to the bit.
    """
    cvae = columns_only(deepcopy(task.cvae), task.forgotten)
    torch.manual_seed(task.seed)

    def loss():
        c_f = some(task.forgotten, task.batch_size)
        logits = cvae.decode(torch.randn(len(c_f), cvae.latent_dim, device=c_f.device), one_hot(c_f))
        return {"forget": bernoulli_nll(logits, torch.rand_like(logits)).mean()}

    return task.minimise(cvae, loss).requires_grad_()
