"""Attacks on a model whose weights are frozen: can the forgotten label be had again?

A search is guided by one judge, and what it finds must be scored by another. A share of successes means little by itself:
the same attack on a model that never saw the label is the control.
"""

from functools import partial

import torch
import torch.nn.functional as F

from amnesia import bernoulli_nll, one_hot

from .denoiser import Denoiser, denoising_loss, times

RADIUS_SQUARED = 20.09  # bound on |z|^2: with 8 latents, 99 % of the prior lies within
BOX = 2.0               # bound on each entry of a label vector that need not lie on the simplex


def descend(costs, searched, steps, confine=lambda: None, learning_rate=0.05):
    """Adam down the sum of what costs() returns, in the tensors `searched`, which confine() puts back within their bounds:
    so many steps, each of which yields what the costs were before it."""
    optimizer = torch.optim.Adam([values.requires_grad_() for values in searched], learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        now = costs()
        now.sum().backward(inputs=searched)                        # and in no weight of the model
        optimizer.step()
        with torch.no_grad():
            confine()
        yield now.detach()


def search(cvae, judge, label, attack, restarts=200, steps=150, learning_rate=0.1, seed=0):
    """Latents (restarts, latent_dim) and label vectors (restarts, K) for which `judge` sees `label` in the decoder's image.

    attack: one of SEARCHES. Each restart climbs the judge's log-probability of `label` by Adam, from a z of the prior and,
    if the label is searched too, from a label vector drawn uniformly from what is allowed; after each step both are put
    back within their bounds. Raises KeyError for another attack.
    """
    generator, device = torch.Generator().manual_seed(seed), next(cvae.parameters()).device
    z = within_ball(torch.randn(restarts, cvae.latent_dim, generator=generator).to(device))
    aim = torch.full((restarts,), label, device=device)
    u = torch.rand(restarts, cvae.classes, generator=generator).to(device)
    y = dict(zip(SEARCHES, (one_hot(aim, cvae.classes), F.normalize(-u.log(), p=1), (2 * u - 1) * BOX), strict=True))[attack]

    def confine():
        z.copy_(within_ball(z))
        y.copy_(SEARCHES[attack](y))

    def costs():
        return F.cross_entropy(judge(cvae.decode(z, y).sigmoid()), aim, reduction="none")

    for _ in descend(costs, [z] if attack == "z alone" else [z, y], steps, confine, learning_rate):
        pass
    return z.detach(), y.detach()


def within_ball(z):
    """The nearest points to z (N, latent_dim) with |z|^2 of at most RADIUS_SQUARED."""
    return z * (RADIUS_SQUARED / z.square().sum(1, keepdim=True)).sqrt().clamp_max(1)


def on_simplex(y):
    """The nearest points to y (N, D) with entries of at least 0 that sum to 1 (Duchi et al. 2008, Fig. 1)."""
    ordered = y.sort(1, descending=True).values
    excess = (ordered.cumsum(1) - 1) / torch.arange(1, y.shape[1] + 1, device=y.device)
    last = (ordered > excess).sum(1, keepdim=True) - 1
    return (y - excess.gather(1, last)).clamp_min(0)


# What each search makes of its label vectors after a step
SEARCHES = {"z alone": torch.clone, "z and label on the simplex": on_simplex,
            "z and label free": partial(torch.clamp, min=-BOX, max=BOX)}


def in_the_box(restarts, classes, generator=None):
    """Label vectors (restarts, classes), drawn uniformly from the box."""
    return (2 * torch.rand(restarts, classes, generator=generator) - 1) * BOX


def cheapest(y, costs, steps, batch_size, learning_rate, others=()):
    """The cheapest of some label vectors y (restarts, 10), after steps of Adam down their costs within the box: (10,).

    costs(y, n): what each vector costs, a mean over n draws, new at every call: (restarts,). The last call, which picks one,
    takes ten times as many. others: tensors that are searched along with y.
    """
    for _ in descend(partial(costs, y, batch_size), [y, *others], steps, partial(y.clamp_, -BOX, BOX), learning_rate):
        pass
    with torch.no_grad():
        return y[costs(y, 10 * batch_size).argmin()].detach()


def joint_costs(cvae, images, y, z):
    """-log p(x|z,c) + |z|^2 / 2 of each image (k, 784) under each label vector y (restarts, 10), from its own
    z (restarts, k, latent_dim): (restarts, k) nats."""
    restarts, k = z.shape[:2]
    nll = bernoulli_nll(cvae.decode(z.flatten(0, 1), y.repeat_interleave(k, 0)), images.repeat(restarts, 1))
    return (nll + z.flatten(0, 1).square().sum(1) / 2).view(restarts, k)


def invert(model, images, steps=400, batch_size=32, learning_rate=0.05, seed=0):
    """The one label vector (10,) within the box that lets the model explain images (k, 784) best, of eight restarts:
    concept inversion (Gal et al. 2023; Pham et al. 2024), of a vector of ten numbers.

    A CVAE's decoder gets a z for each image beside each vector, found along with it, under the prior: the encoder, which
    forgetting may have spoiled, is not asked. A Denoiser denoises so many of the images, each at its own time, new at every
    step; it gets four restarts.
    """
    restarts = 4 if isinstance(model, Denoiser) else 8
    y = in_the_box(restarts, model.classes, torch.Generator().manual_seed(seed)).to(images.device)
    if not isinstance(model, Denoiser):
        z = torch.zeros(restarts, len(images), model.latent_dim, device=images.device)
        return cheapest(y, lambda y, n: joint_costs(model, images, y, z).mean(1), steps, batch_size, learning_rate, [z])

    def costs(y, n):
        x = images[torch.randint(len(images), (n,), device=images.device)]
        t, noise = times(n, x.device), torch.randn_like(x)          # the same for every vector
        return denoising_loss(model, x.repeat(restarts, 1), y.repeat_interleave(n, 0), t.repeat(restarts),
                              noise.repeat(restarts, 1)).view(restarts, n).mean(1)

    torch.manual_seed(seed)
    return cheapest(y, costs, steps, batch_size, learning_rate)


def search_label(cvae, judge, label, restarts=8, steps=150, batch_size=64, learning_rate=0.1, seed=0):
    """The one label vector (10,) within the box under which `judge` is surest to see `label` whatever the z: the best of
    several restarts, each of which climbs the mean log-probability over so many new z of the prior at every step, by Adam.
    """
    generator, device = torch.Generator().manual_seed(seed), next(cvae.parameters()).device

    def costs(y, n):
        z = torch.randn(len(y) * n, cvae.latent_dim, generator=generator).to(device)
        logits = judge(cvae.decode(z, y.repeat_interleave(n, 0)).sigmoid())
        return -logits.log_softmax(1)[:, label].view(len(y), n).mean(1)

    return cheapest(in_the_box(restarts, cvae.classes, generator).to(device), costs, steps, batch_size, learning_rate)
