"""Methods that hold the kept labels to the answers of a frozen copy, instead of learning from its drawings."""

from copy import deepcopy

import torch

from amnesia.data import one_hot
from amnesia.models import CVAE, bernoulli_nll, negative_elbo_terms

from ..weights import mixed
from .selective_amnesia import identity, noise_pairs
from .task import some, springs


def divergence(original, cvae, asked, told, only=""):
    """KL from the frozen copy, asked for the labels `asked`, to the model, told `told`: nats per image, (n,).

    KL(p* || p) of the pixels given z, and KL(q* || q) of the latents given the mean image; only: "decoder" or "encoder"
    leaves the other out.
    """
    z = torch.randn(len(asked), original.latent_dim, device=asked.device)
    with torch.no_grad():
        logits_old = original.decode(z, one_hot(asked))
        p_old = logits_old.sigmoid()
        mean_old, log_var_old = original.encode(p_old, one_hot(asked))
    decoder = bernoulli_nll(cvae.decode(z, one_hot(told)), p_old) - bernoulli_nll(logits_old, p_old)
    mean, log_var = cvae.encode(p_old, one_hot(told))
    encoder = (log_var - log_var_old + ((mean - mean_old).square() + log_var_old.exp()) / log_var.exp() - 1).sum(1) / 2
    if only == "decoder":
        return decoder
    if only == "encoder":
        return encoder
    return decoder + encoder


def distilled(task, lam=0.3, batch_size=96, only="", extra=None):
    """Selective Amnesia as notebook 03 does it by default, to the bit: noise under the forgotten labels, the divergence from
    the frozen copy under the kept ones, a spring on each weight of stiffness lam F. In batches of notebook 03's size, which
    is less than the other methods take. extra: {name of one more term: a function of the new model that returns the
    function which draws that term's batch and returns its value}.
    """
    cvae, original, device = deepcopy(task.cvae), task.cvae, task.kept.device
    protect = springs(cvae, original, task.fim, lam)
    torch.manual_seed(task.seed)
    more = {name: make(cvae) for name, make in (extra or {}).items()}

    def loss():
        c_f, c_r = some(task.forgotten, 24).repeat(2), some(task.kept, batch_size)
        forget = sum(negative_elbo_terms(cvae, noise_pairs(48, device), one_hot(c_f)))
        remember = divergence(original, cvae, c_r, c_r, only)
        return {"forget": forget.mean(), "remember": remember.mean(), "protect": protect(),
                **{name: term() for name, term in more.items()}}

    return task.minimise(cvae, loss)


def steered(task, lam=0.1, batch_size=96):
    """Distill, Forget, Repeat (George et al. 2025) for this model: under each forgotten label the frozen copy's answers to
    the kept label that explains its drawings best, under the kept labels its answers to them, and springs all alike.
    """
    cvae, original = deepcopy(task.cvae), task.cvae
    protect = springs(cvae, original, identity(task), lam)
    torch.manual_seed(task.seed)
    nearest = torch.stack([nearest_kept(original, label, task.kept) for label in task.forgotten])

    def loss():
        which, c_r = torch.randint(len(nearest), (48,), device=nearest.device), some(task.kept, batch_size)
        forget = divergence(original, cvae, nearest[which], task.forgotten[which])
        remember = divergence(original, cvae, c_r, c_r)
        return {"forget": forget.mean(), "remember": remember.mean(), "protect": protect()}

    return task.minimise(cvae, loss)


def undo(task, noise=1.0, steps=8000):
    """Distilled amnesia, and then a second network that learns to answer as the amnesiac one does under every label.

    noise: the share of a new initialisation in the weights that the second network starts from, the rest being the amnesiac
    model's. (UNDO, Lee et al. 2025: what only the weights held does not pass to another network.) In batches as large and
    at the rate of notebook 01.
    """
    teacher = distilled(task)
    torch.manual_seed(task.seed)
    fresh = CVAE(**teacher.config).to(task.kept.device)
    student, labels = mixed(fresh, [teacher], [1 - noise]), torch.cat([task.forgotten, task.kept])

    def loss():
        c = some(labels, task.recipe["batch_size"])
        return {"remember": divergence(teacher, student, c, c).mean()}

    return task.minimise(student, loss, steps=steps, learning_rate=task.recipe["learning_rate"])


@torch.no_grad()
def nearest_kept(original, label, kept, n=500):
    """The kept label with the highest ELBO of n images that the original draws of `label`."""
    x = original.generate(label.expand(n))
    nelbos = [sum(negative_elbo_terms(original, x, one_hot(c.expand(n)))).mean() for c in kept]
    return kept[torch.stack(nelbos).argmin()]
