"""Attacks on a model whose weights are frozen: can the forgotten digit be had again?

A search is guided by one judge, and what it finds must be scored by another. A share of successes means little by itself:
the same attack on a model that never saw the digit is the control.
"""

import torch
import torch.nn.functional as F

from amnesia.data import CLASSES, one_hot
from amnesia.evaluation import ask
from amnesia.models import bernoulli_nll

from .sweep import images_to_text

RADIUS_SQUARED = 20.09  # bound on |z|^2: with 8 latents, 99 % of the prior lies within
BOX = 2.0               # bound on each entry of a label vector that need not lie on the simplex
SEARCHES = ("z alone", "z and label on the simplex", "z and label free")


def search(cvae, judge, label, attack, restarts=200, steps=150, learning_rate=0.1, seed=0):
    """Latents (restarts, latent_dim) and label vectors (restarts, 10) for which `judge` sees `label` in the decoder's image.

    attack: one of SEARCHES. Each restart climbs the judge's log-probability of `label` by Adam, from a z of the prior and,
    if the label is searched too, from a label vector drawn uniformly from what is allowed; after each step both are put
    back within their bounds. Raises ValueError for another attack.
    """
    if attack not in SEARCHES:
        raise ValueError(f"attack={attack!r}: expected one of {', '.join(SEARCHES)}.")
    generator, device = torch.Generator().manual_seed(seed), next(cvae.parameters()).device
    z = within_ball(torch.randn(restarts, cvae.latent_dim, generator=generator).to(device)).requires_grad_()
    aim = torch.full((restarts,), label, device=device)
    u = torch.rand(restarts, CLASSES, generator=generator).to(device)
    if attack == "z alone":
        y, searched = one_hot(aim), [z]
    else:
        y = F.normalize(-u.log(), p=1) if attack == "z and label on the simplex" else (2 * u - 1) * BOX
        searched = [z, y.requires_grad_()]
    optimizer = torch.optim.Adam(searched, learning_rate)
    for _ in range(steps):
        nll = F.cross_entropy(judge(cvae.decode(z, y).sigmoid()), aim, reduction="sum")  # a sum: restarts don't mix
        for values, gradient in zip(searched, torch.autograd.grad(nll, searched), strict=True):
            values.grad = gradient
        optimizer.step()
        with torch.no_grad():
            z.copy_(within_ball(z))
            if attack == "z and label on the simplex":
                y.copy_(on_simplex(y))
            elif attack == "z and label free":
                y.clamp_(-BOX, BOX)
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


def in_the_box(restarts, generator=None):
    """Label vectors (restarts, 10), drawn uniformly from the box."""
    return (2 * torch.rand(restarts, CLASSES, generator=generator) - 1) * BOX


class Inversion:
    """Concept inversion, a step at a time: label vectors y (restarts, 10), each of which is to let the decoder explain all
    of some images (k, 784).

    Each image has a z of its own beside each label vector, found along with it, under the prior: the encoder, which
    forgetting may have spoiled, is not asked. fixed: the label vectors stay as they are, and only the z are found.
    """

    def __init__(self, cvae, images, y, learning_rate=0.05, fixed=False):
        self.cvae, self.images, self.y = cvae, images, y.requires_grad_(not fixed)
        self.z = torch.zeros(len(y), len(images), cvae.latent_dim, device=images.device, requires_grad=True)
        self.searched = [self.z] if fixed else [self.y, self.z]
        self.optimizer = torch.optim.Adam(self.searched, learning_rate)

    def costs(self):
        """-log p(x|z,c) + |z|^2 / 2 of each image under each label vector: (restarts, k) nats."""
        restarts, k = len(self.y), len(self.images)
        logits = self.cvae.decode(self.z.flatten(0, 1), self.y.repeat_interleave(k, 0))        # (restarts k, 784)
        nll = bernoulli_nll(logits, self.images.repeat(restarts, 1))
        return (nll + self.z.flatten(0, 1).square().sum(1) / 2).view(restarts, k)

    def step(self):
        """One step of Adam down the costs; returns what they were before it."""
        costs = self.costs()
        for values, gradient in zip(self.searched, torch.autograd.grad(costs.sum(), self.searched), strict=True):
            values.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.y.clamp_(-BOX, BOX)
        return costs.detach()


def invert(cvae, images, restarts=8, steps=400, learning_rate=0.05, seed=0):
    """The one label vector (10,) within the box that lets the decoder explain images (k, 784) best, of several restarts.

    (Concept inversion: Gal et al. 2023 and Pham et al. 2024, for this model.)
    """
    y = in_the_box(restarts, torch.Generator().manual_seed(seed)).to(images.device)
    inversion = Inversion(cvae, images, y, learning_rate)
    for _ in range(steps):
        costs = inversion.step()
    return y[costs.mean(1).argmin()].detach()


def search_label(cvae, judge, label, restarts=8, steps=150, batch_size=64, learning_rate=0.1, seed=0):
    """The one label vector (10,) within the box under which `judge` is surest to see `label` whatever the z: the best of
    several restarts, each of which climbs the mean log-probability over so many new z of the prior at every step, by Adam.
    """
    generator, device = torch.Generator().manual_seed(seed), next(cvae.parameters()).device

    def costs(y, n):
        """-log p(label) of each label vector, the mean over n new z: (restarts,)."""
        z = torch.randn(len(y) * n, cvae.latent_dim, generator=generator).to(device)
        logits = judge(cvae.decode(z, y.repeat_interleave(n, 0)).sigmoid())
        return -logits.log_softmax(1)[:, label].view(len(y), n).mean(1)

    return cheapest(in_the_box(restarts, generator).to(device), costs, steps, batch_size, learning_rate)


def cheapest(y, costs, steps, batch_size, learning_rate):
    """The cheapest of some label vectors y (restarts, 10), after steps of Adam down their costs within the box: (10,).

    costs(y, n): what each vector costs, a mean over n draws, new at every call: (restarts,). The last call, which picks one,
    takes ten times as many.
    """
    optimizer = torch.optim.Adam([y.requires_grad_()], learning_rate)
    for _ in range(steps):
        y.grad, = torch.autograd.grad(costs(y, batch_size).sum(), [y])
        optimizer.step()
        with torch.no_grad():
            y.clamp_(-BOX, BOX)
    with torch.no_grad():
        return y[costs(y, 10 * batch_size).argmin()].detach()


@torch.no_grad()
def draw(cvae, z, y):
    """The mean images of latents (N, latent_dim) and label vectors (N, 10), as bytes (N, 784)."""
    return (cvae.decode(z, y).sigmoid() * 255).round().byte()


def successes(judge, images, label, threshold=0.9):
    """Which of these images, bytes (N, 784), the judge takes for `label` with a probability above `threshold`: (N,) bool."""
    return ask(judge, images)[0][:, label] > threshold


def judged(experiment, images, label):
    """What the second judge says of the images (n, 784) that an attack found: {"hits", "n"}, and eight of them, "drawn"."""
    hits = successes(experiment.second_judge, images, label).sum().item()
    return {"hits": hits, "n": len(images), "drawn": images_to_text(images[:8])}


def attack_all(experiment, cvae, label, real, seed, scale, restarts):
    """Each search from so many restarts, and 1,000 samples of each inversion from 10 and from 100 of the real images."""
    generator, n, found = torch.Generator().manual_seed(seed), max(20, round(1000 * scale)), {}
    for kind in SEARCHES:
        z, y = search(cvae, experiment.judge, label, kind, restarts, steps=max(1, round(150 * scale)), seed=seed)
        found[kind] = draw(cvae, z, y)
    for k in (10, 100):
        y = invert(cvae, real[:k], steps=max(1, round(400 * scale)), seed=seed)
        z = torch.randn(n, cvae.latent_dim, generator=generator).to(experiment.device)
        found[f"inversion from {k} images"] = draw(cvae, z, y.expand(n, -1))
    return {name: judged(experiment, images, label) for name, images in found.items()}
