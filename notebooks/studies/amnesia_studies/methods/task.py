"""What every method of forgetting is given, and the steps that several of them share."""

from dataclasses import dataclass, field

import torch

from amnesia.data import Digits
from amnesia.models import CVAE
from amnesia.training import fit


@dataclass
class Task:
    """What a method of forgetting may use; every method takes one, leaves it as it is, and returns a new CVAE.

    cvae: the original; fim: its Fisher information; train: real Digits, for the methods that need them; forgotten, kept:
    labels as int64 tensors on the device; seed; scale: the share of the default number of steps to train for; recipe: the
    settings of notebook 01 that the original was trained with. Steps and rate are those of notebook 03; the batch is what
    replay takes.
    """

    cvae: CVAE
    fim: dict
    train: Digits
    forgotten: torch.Tensor
    kept: torch.Tensor
    seed: int = 0
    scale: float = 1.0
    recipe: dict = field(default_factory=dict)
    batch_size: int = 384
    learning_rate: float = 5e-3
    steps: int = 1600
    schedule: str = "one-cycle"

    def minimise(self, cvae, loss, **choices):
        """Trains `cvae` on loss() as notebook 03 does, or by other `choices` for fit(), and returns it."""
        choices = {"steps": self.steps, "learning_rate": self.learning_rate, "schedule": self.schedule, **choices}
        choices["steps"] = max(1, round(self.scale * choices["steps"]))
        fit(cvae, loss, **choices)
        return cvae


def some(labels, n):
    """n of these labels, drawn at random."""
    return labels[torch.randint(len(labels), (n,), device=labels.device)]


def replay(original, labels, drawn=0.75):
    """Generated images (n, 784) of the labels (n,): a share `drawn` from p(x|z,c), pixel by pixel, the rest means."""
    mean = original.generate(labels)                        # z ~ p(z)
    drawn = int(drawn * len(mean))
    return torch.cat([torch.bernoulli(mean[:drawn]), mean[drawn:]])


def springs(cvae, original, fim, lam):
    """A function that returns lambda / 2 sum_i F_i (theta_i - theta*_i)^2, elastic weight consolidation, and writes its
    gradient, lambda F_i (theta_i - theta*_i), into p.grad, where backward() adds that of the other terms.
    """
    triples = [(fim[name], p, p_old) for (name, p), p_old in
               zip(cvae.named_parameters(), original.parameters(), strict=True)]

    @torch.no_grad()
    def protect():
        energy = 0.0
        for f, p, p_old in triples:
            change = p - p_old
            p.grad = lam * f * change
            energy += (p.grad * change).sum()
        return energy / 2

    return protect
