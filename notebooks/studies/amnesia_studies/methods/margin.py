"""Forgetting with a margin: a part of the edit is to forget as well, so that an average with the original still does."""

from dataclasses import replace

import torch
from torch.func import functional_call

from amnesia.data import one_hot
from amnesia.models import bernoulli_nll

from .distillation import distilled
from .selective_amnesia import noise_pairs
from .task import some


def margin(task, lam=0.0, least=0.4, steps=1600):
    """Distilled amnesia with a fourth term, "margin": a decoder that has gone only a share of the way from the original,
    drawn anew at each step from [least, 1], draws noise under the forgotten labels, whatever the z."""
    return distilled(replace(task, steps=steps), lam, extra={"margin": lambda cvae: part_way(cvae, task, least)})


def part_way(cvae, task, least):
    """A function that returns -log p of 24 images of noise under the forgotten labels, z from the prior, by the decoder at
    theta* + a (theta - theta*), for a new a: nats per image."""
    pairs = [(name, p, old.detach()) for (name, p), old in
             zip(cvae.decoder.named_parameters(), task.cvae.decoder.parameters(), strict=True)]

    def forget():
        a = least + (1 - least) * torch.rand((), device=task.kept.device)
        c_f = some(task.forgotten, 12).repeat(2)
        z = torch.randn(len(c_f), cvae.latent_dim, device=c_f.device)
        weights = {name: old + a * (p - old) for name, p, old in pairs}
        logits = functional_call(cvae.decoder, weights, (torch.cat([z, one_hot(c_f)], 1),))
        return bernoulli_nll(logits, noise_pairs(len(c_f), c_f.device)).mean()

    return forget
