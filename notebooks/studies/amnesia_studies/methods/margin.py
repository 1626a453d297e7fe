"""Forgetting with a margin: half of the edit is to forget as well, so that an average with the original still does."""

import torch
from torch.func import functional_call

from amnesia.data import one_hot
from amnesia.models import bernoulli_nll

from .distillation import distilled
from .editing import columns_only
from .selective_amnesia import noise_pairs
from .task import some


def margin(task, lam=0.3, least=0.5, weight=30.0, steps=1600):
    """Distilled amnesia, and then the decoder's input column of each forgotten label, 256 numbers, is trained on: towards
    noise, with this weight, and towards noise where the decoder has gone but a share of the way from the original, drawn
    anew from [least, 1] at each step. Every answer for a kept label stays that of distilled amnesia to the bit.
    """
    cvae = columns_only(distilled(task, lam), task.forgotten)
    torch.manual_seed(task.seed)

    def loss():
        share = least + (1 - least) * torch.rand((), device=task.kept.device)
        return {"forget": weight * noise_part_way(cvae, task, 1.0), "margin": noise_part_way(cvae, task, share)}

    return task.minimise(cvae, loss, steps=steps, learning_rate=1e-2).requires_grad_()


def noise_part_way(cvae, task, share):
    """-log p of 48 images of noise under the forgotten labels, z from the prior, by the decoder that has gone this share of
    the way from the original: mean nats per image."""
    c_f = some(task.forgotten, 24).repeat(2)
    z = torch.randn(len(c_f), cvae.latent_dim, device=c_f.device)
    weights = {name: old.detach() + share * (p - old.detach()) for (name, p), old in
               zip(cvae.decoder.named_parameters(), task.cvae.decoder.parameters(), strict=True)}
    logits = functional_call(cvae.decoder, weights, (torch.cat([z, one_hot(c_f)], 1),))
    return bernoulli_nll(logits, noise_pairs(len(c_f), c_f.device)).mean()
