"""Forgetting under attack: while the model forgets, an inner adversary looks for the digit under every other label vector.

(AdvUnlearn, Zhang et al. 2024, and RECE, Gong et al. 2024, do so with prompts of a text-to-image model.)
"""

import itertools

import torch
import torch.nn.functional as F

from amnesia.data import one_hot

from ..attacks import Inversion, in_the_box
from .distillation import distilled
from .task import some


def adversarial(task, lam=0.0, attackers=8):
    """Distilled amnesia with a fourth term, "invert", and by default no spring, whose place it takes."""
    return distilled(task, lam, task.batch_size, extra={"invert": lambda cvae: inner_inversion(cvae, task, attackers)})


def inner_inversion(cvae, task, attackers, k=16, life=400):
    """A function that goes a step of concept inversion each time it is called, and returns what there is to forget about it:
    the mean over the attackers' label vectors of max(0, floor - cost), nats per image.

    What is inverted is the frozen copy's own drawings of the forgotten labels, no real image. The floor is what they cost
    under the best of the kept labels, chosen for each drawing: no one label vector shall explain them better. After `life`
    steps the attackers start anew, on k other drawings.
    """
    drawings = task.cvae.generate(some(task.forgotten, 64))
    kept = Inversion(task.cvae, drawings, one_hot(task.kept), fixed=True)
    for _ in range(100):
        floors = kept.step().min(0).values                                      # (64,)
    steps, inversion, floor = itertools.count(), None, None

    def invert():
        nonlocal inversion, floor
        if next(steps) % life == 0:
            pick = torch.randperm(len(drawings), device=drawings.device)[:k]
            inversion = Inversion(cvae, drawings[pick], in_the_box(attackers).to(drawings.device))
            floor = floors[pick].mean()
        inversion.step()
        return F.relu(floor - inversion.costs().mean(1)).mean()

    return invert
