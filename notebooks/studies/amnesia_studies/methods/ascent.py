"""Methods that unlearn by gradient ascent."""

from copy import deepcopy

import torch

from amnesia.data import one_hot
from amnesia.models import negative_elbo_terms

from .task import replay, some, springs

CEILING = 1000.0  # nats per image at which ascent stops: without one there is no minimum, and every run diverges


def naive(task, lam=0.4):
    """Pushes down the ELBO of generated images of the forgotten labels, with replay and the springs (the paper's Eq. 3)."""
    cvae, original = deepcopy(task.cvae), task.cvae
    protect = springs(cvae, original, task.fim, lam)
    torch.manual_seed(task.seed)

    def loss():
        c_f, c_r = some(task.forgotten, task.batch_size // 8), some(task.kept, task.batch_size)
        forget = sum(negative_elbo_terms(cvae, replay(original, c_f), one_hot(c_f)))
        remember = sum(negative_elbo_terms(cvae, replay(original, c_r), one_hot(c_r)))
        return {"forget": -forget.clamp_max(CEILING).mean(), "remember": remember.mean(), "protect": protect()}

    return task.minimise(cvae, loss)


def neggrad(task):
    """NegGrad+ (Kurmanji et al. 2023): gradient ascent on real images to forget, descent on real images to keep."""
    cvae, (forgotten, kept) = deepcopy(task.cvae), (task.train.only(c.tolist()) for c in (task.forgotten, task.kept))
    torch.manual_seed(task.seed)

    def loss():
        forget = sum(negative_elbo_terms(cvae, *forgotten.batch(task.batch_size // 8)))
        return {"forget": -forget.clamp_max(CEILING).mean(),
                "remember": sum(negative_elbo_terms(cvae, *kept.batch(task.batch_size))).mean()}

    return task.minimise(cvae, loss)
