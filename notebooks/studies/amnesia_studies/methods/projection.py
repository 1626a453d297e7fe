"""Gradient surgery: the gradient that forgets is kept from working against the one that remembers."""

from copy import deepcopy

import torch

from amnesia.data import one_hot
from amnesia.models import negative_elbo_terms

from .ascent import CEILING
from .task import replay, some


def surgery(task):
    """Forgetting by ascent whose gradient has the part along replay's gradient taken out, and replay (Bae et al. 2023; UNO,
    Mandal & Gottwald 2025, has variants of it)."""
    cvae, original = deepcopy(task.cvae), task.cvae
    weights = list(cvae.parameters())
    torch.manual_seed(task.seed)

    def gradient(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, weights)])

    def loss():
        c_f, c_r = some(task.forgotten, task.batch_size // 8), some(task.kept, task.batch_size)
        forget = -sum(negative_elbo_terms(cvae, replay(original, c_f), one_hot(c_f))).clamp_max(CEILING).mean()
        remember = sum(negative_elbo_terms(cvae, replay(original, c_r), one_hot(c_r))).mean()
        g_f, g_r = gradient(forget), gradient(remember)
        g_f = g_f - (g_f @ g_r) / (g_r @ g_r) * g_r
        step = torch.cat([p.flatten() for p in weights]) @ (g_f + g_r)          # a term whose gradient is that of the step
        return {"forget": forget.detach(), "remember": remember.detach(), "step": step - step.detach()}

    return task.minimise(cvae, loss)
