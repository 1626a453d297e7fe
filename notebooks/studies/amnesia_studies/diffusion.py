"""The five stages for a Denoiser: how it is trained, its Fisher information, how it forgets, its bound; its Experiment."""

import math
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from amnesia.data import CLASSES, PIXELS, Digits, one_hot
from amnesia.storage.parameters import forget_set
from amnesia.training import fit

from .denoiser import Denoiser, denoising_loss, noised, times
from .experiment import Experiment
from .methods import Method, original
from .methods.task import Task, some, springs

GREY = 128
DRAWINGS = 200             # of each label, that the frozen copy makes once


def train(denoiser, digits, steps, batch_size, learning_rate, snapshot=None, stage=None):
    """Trains `denoiser` on `digits`; returns (average, history): the model with the exponential average of its weights over
    the last steps, which draws better, and what fit() returned. snapshot: of that model, what fit() is to keep.
    """
    average = deepcopy(denoiser).requires_grad_(False)
    weights, follow = [list(model.parameters()) for model in (average, denoiser)], get_ema_multi_avg_fn(0.998)

    def loss():
        follow(*weights, None)
        x, y = digits.batch(batch_size)
        return {"denoise": denoising_loss(denoiser, x, unlabelled(y), times(len(x), x.device), torch.randn_like(x)).mean()}

    history = fit(nn.ModuleList([denoiser, average]), loss, steps=steps, learning_rate=learning_rate, data=digits,
                  stage=stage, title="train", snapshot=snapshot and (lambda: snapshot(average)))
    return average.requires_grad_(True), history


def unlabelled(y, share=0.1):
    """Label vectors y (B, 10), of which a random share became 0: what is learned there guides the sampler."""
    return y * (torch.rand(len(y), 1, device=y.device) >= share)


def drawings(denoiser, n=DRAWINGS, seed=0):
    """What the model draws, n images a label, as Digits: they stand for the training data in all that follows."""
    device = next(denoiser.parameters()).device
    labels = torch.arange(CLASSES, device=device).repeat_interleave(n)
    z = torch.randn(len(labels), PIXELS, generator=torch.Generator().manual_seed(seed)).to(device)
    return Digits((denoiser.generate(labels, z) * 255).round().byte(), labels, f"{len(labels):,} drawings")


def mean_gradient(denoiser, x, y, n_times):
    """The gradient of one image's loss, the mean over so many times and noises: x (1, 784), y (1, 10)."""
    x, y = x.expand(n_times, -1), y.expand(n_times, -1)
    nats = denoising_loss(denoiser, x, y, times(n_times, x.device), torch.randn_like(x)).mean()
    return torch.autograd.grad(nats, list(denoiser.parameters()))


def denoiser_fisher(denoiser, images, n_times=8, progress=iter):
    """F_i = E[(dL/dtheta_i)^2] over these images (Digits), where L is an image's loss at all times: a dict like the model's
    parameters.

    A mean over a few times is L's gradient and some noise, whose square would count as information. The product of two
    means that share nothing is unbiased. It may be negative by chance, and then is cut off at 0, after all images.
    """
    total = [torch.zeros_like(p) for p in denoiser.parameters()]
    for i in progress(range(len(images))):
        x, y = images[i:i + 1]
        pair = mean_gradient(denoiser, x, y, n_times), mean_gradient(denoiser, x, y, n_times)
        torch._foreach_addcmul_(total, *pair)
    return {name: (value / len(images)).clamp_min(0)
            for (name, _), value in zip(denoiser.named_parameters(), total, strict=True)}


@torch.no_grad()
def denoising_bound(denoiser, digits, seed=0, n_times=2, batch_size=1000):
    """Minus the weighted loss of each image of `digits`, (N,) nats on the CPU, up to a constant that no model changes: a
    lower bound on log p(x|c), averaged over noised images (Kingma & Gao 2023). Times and noise are the same for every model.
    """
    generator, values = torch.Generator().manual_seed(seed), []
    for index in torch.arange(len(digits), device=digits.images.device).split(batch_size):
        x, y = digits[index]
        nats = 0
        for _ in range(n_times):
            t, noise = torch.rand(len(x), generator=generator), torch.randn(x.shape, generator=generator)
            nats = nats + denoising_loss(denoiser, x, y, t.to(x.device), noise.to(x.device))
        values.append(-nats.cpu() / n_times)
    return torch.cat(values)


@dataclass
class DenoiserTask(Task):
    """A Task (methods/task.py) whose model is a Denoiser; images: the frozen copy's drawings of the kept labels."""

    images: Digits = None


def three_terms(task, denoiser, lam=0.0, remember="distil", surrogate="grey", unconditional="distil"):
    """A function that returns what `denoiser`, a copy of the original, is to minimise: {"forget", "remember", "protect"} in
    nats per image. Flat grey under the forgotten labels, the frozen copy's answers on its own drawings under the kept ones,
    a spring on each weight of stiffness lam F.

    remember: "replay" learns the drawings anew, as the paper does; "nothing" leaves the term out. surrogate: "noise" is the
    paper's. unconditional: with "replay", what is said without a label is learned anew from the kept labels' drawings, and
    not held to the frozen copy's answers, which know the forgotten label. Raises ValueError for another word.
    """
    for name, value, known in (("remember", remember, ("distil", "replay", "nothing")),
                               ("surrogate", surrogate, ("grey", "noise")),
                               ("unconditional", unconditional, ("distil", "replay"))):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}.")
    protect, device = springs(denoiser, task.cvae, task.fim, lam), task.kept.device

    def loss():
        x, y = torch.full((24, PIXELS), 0.5, device=device), one_hot(some(task.forgotten, 24))
        if surrogate == "noise":
            x = torch.rand_like(x)
        if remember != "nothing":
            x_kept, y_kept = task.images.batch(48)
            x, y = torch.cat([x, x_kept]), torch.cat([y, unlabelled(y_kept)])
        t = torch.cat([times(24, device), times(len(x) - 24, device)])
        z, v = noised(x, t, torch.randn_like(x))
        if remember == "distil":                            # what is to be said of kept labels is what the frozen copy says
            with torch.no_grad():
                told = task.cvae(z[24:], t[24:], y[24:])
            if unconditional == "replay":
                told = torch.where(y[24:].any(1, keepdim=True), told, v[24:])
            v = torch.cat([v[:24], told])
        nats = math.pi / 2 * (v - denoiser(z, t, y)).square().sum(1)
        terms = {"forget": nats[:24].mean()}
        if remember != "nothing":
            terms["remember"] = nats[24:].mean()
        return {**terms, "protect": protect()} if lam else terms

    return loss


def selective_amnesia(task, **options):
    """Selective Amnesia by three_terms() with these options."""
    denoiser = deepcopy(task.cvae)
    torch.manual_seed(task.seed)
    return task.minimise(denoiser, three_terms(task, denoiser, **options), steps=400, learning_rate=1e-3, data=task.images)


def from_scratch(task, digits):
    """A Denoiser trained as the original was, but for the seed and the digits."""
    torch.manual_seed(task.seed)
    denoiser = Denoiser(**task.cvae.config).to(digits.images.device)
    recipe = {name: task.recipe[name] for name in ("batch_size", "learning_rate")}
    return train(denoiser, digits, max(1, round(task.scale * task.recipe["steps"])), **recipe)[0]


def retrain(task):
    """Trained from scratch on the images of the kept labels only."""
    return from_scratch(task, task.train.only(task.kept.tolist()))


def oracle(task):
    """Trained from scratch, with flat grey in the place of the forgotten labels' images."""
    images = task.train.images.clone()
    images[torch.isin(task.train.labels, task.forgotten)] = GREY
    return from_scratch(task, Digits(images, task.train.labels, "digits with grey"))


METHODS = {"original": Method(original, ""), "selective amnesia": Method(selective_amnesia, "none"),
           "retrain": Method(retrain, "kept labels"), "oracle": Method(oracle, "kept labels")}


class DiffusionExperiment(Experiment):
    """An Experiment (experiment.py) with a Denoiser, whose files are denoiser.pt and fim-denoiser.pt."""

    network, methods, bound, samples = Denoiser, METHODS, staticmethod(denoising_bound), 500

    def __init__(self, workspace="auto", dataset="MNIST", device="auto", model="denoiser", use_drive=True):
        super().__init__(workspace, dataset, device, model, use_drive)

    @cached_property
    def drawings(self):
        """What the original draws, as Digits."""
        return drawings(self.cvae)

    def task(self, forget, seed=0, scale=1.0):
        """What a method is given to forget these labels."""
        return DenoiserTask(**vars(super().task(forget, seed, scale)), images=self.drawings.only(forget_set(forget)[1]))
