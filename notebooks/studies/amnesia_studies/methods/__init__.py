"""Every method that the studies compare: one function of a Task each, which returns a new CVAE.

Those that train go on for as many steps, on batches as large, as Selective Amnesia does, unless they say otherwise.
"""

from collections.abc import Callable
from typing import NamedTuple

from .adversarial import adversarial
from .ascent import naive, neggrad
from .distillation import distilled, steered, undo
from .editing import dampening, label_edit
from .margin import margin
from .projection import surgery
from .references import oracle, retrain
from .relabelling import feature, random_label, saliency
from .selective_amnesia import as_published, selective_amnesia
from .task import Task

__all__ = ["METHODS", "Task", "adversarial", "distilled", "selective_amnesia"]


def original(task):
    """The model as it is, which has forgotten nothing."""
    return task.cvae


class Method(NamedTuple):
    """A function of a Task, and the real images that it needs: "none", of the "kept labels", or "all"."""

    function: Callable
    real_data: str


METHODS = {
    "original": Method(original, ""),
    "selective amnesia": Method(selective_amnesia, "none"),
    "as published": Method(as_published, "none"),
    "distilled amnesia": Method(distilled, "none"),
    "adversarial amnesia": Method(adversarial, "none"),
    "with a margin": Method(margin, "none"),
    "distilled anew": Method(undo, "none"),
    "naive": Method(naive, "none"),
    "NegGrad+": Method(neggrad, "all"),
    "gradient surgery": Method(surgery, "none"),
    "random label": Method(random_label, "none"),
    "SalUn": Method(saliency, "none"),
    "feature unlearning": Method(feature, "none"),
    "Distill, Forget, Repeat": Method(steered, "none"),
    "dampening": Method(dampening, "none"),
    "label edit": Method(label_edit, "none"),
    "retrain": Method(retrain, "kept labels"),
    "oracle": Method(oracle, "kept labels")}
