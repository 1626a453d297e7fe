"""Every method that the studies compare: one function of a Task each, which returns a new CVAE.

Those that train go on for as many steps, on batches as large, as Selective Amnesia does, unless they say otherwise.
"""

from .adversarial import adversarial
from .ascent import naive, neggrad
from .distillation import distilled, steered
from .editing import dampening, label_edit
from .projection import surgery
from .references import oracle, retrain
from .relabelling import feature, random_label, saliency
from .selective_amnesia import selective_amnesia
from .task import Task

__all__ = ["METHODS", "Task", "adversarial", "distilled", "selective_amnesia"]


def original(task):
    """The model as it is, which has forgotten nothing."""
    return task.cvae


# name: (function of a Task, the real data that it needs)
METHODS = {
    "original": (original, ""),
    "selective amnesia": (selective_amnesia, "none"),
    "distilled amnesia": (distilled, "none"),
    "adversarial amnesia": (adversarial, "none"),
    "naive": (naive, "none"),
    "NegGrad+": (neggrad, "all"),
    "gradient surgery": (surgery, "none"),
    "random label": (random_label, "none"),
    "SalUn": (saliency, "none"),
    "feature unlearning": (feature, "none"),
    "Distill, Forget, Repeat": (steered, "none"),
    "dampening": (dampening, "none"),
    "label edit": (label_edit, "none"),
    "retrain": (retrain, "kept labels"),
    "oracle": (oracle, "kept labels")}
