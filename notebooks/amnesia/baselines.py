"""What Selective Amnesia is compared with: other ways to forget, and the two references that never learned the digit.

Every function takes a Task (forgetting.py) and returns a new CVAE. Those that train go on for as many steps, on batches
as large, as Selective Amnesia does, unless it says otherwise.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F

from .data import PIXELS, Digits, one_hot
from .fisher import diagonal_fisher
from .forgetting import penalty, replay, some
from .models import CVAE, bernoulli_nll, elbo_terms

CEILING = 1000.0  # nats per image at which ascent stops: without one there is no minimum, and every run diverges


def retrain(task):
    """Trained from scratch, as in notebook 01, on the images of the kept labels only."""
    return train_from_scratch(task, task.train.only(task.kept.tolist()))


def oracle(task):
    """Trained from scratch, as in notebook 01, with the forgotten labels' images replaced by uniform noise."""
    images, labels = task.train.images.clone(), task.train.labels
    replaced = torch.isin(labels, task.forgotten)
    noise = torch.randint(256, (int(replaced.sum()), PIXELS), generator=torch.Generator().manual_seed(task.seed))
    images[replaced] = noise.byte().to(images.device)
    return train_from_scratch(task, Digits(images, labels, "digits with noise"))


def train_from_scratch(task, digits):
    """Notebook 01 on these digits, from another seed than the original's."""
    torch.manual_seed(task.seed)
    cvae = CVAE(**task.cvae.config).to(digits.images.device)
    with torch.no_grad():
        cvae.decoder[-1].bias.copy_((digits.images.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3).logit())
    masks = F.dropout(torch.ones(1000, PIXELS, device=digits.images.device), 0.1)

    def loss():
        x, y = digits.batch(128)
        seen = x * masks[torch.randint(1000, (len(x),), device=x.device)]
        reconstruction, kl = elbo_terms(cvae, x, y, seen=seen)
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    return task.minimise(cvae, loss, steps=12_500, learning_rate=3e-3, weight_decay=0.012)


def naive(task, lam=0.4):
    """Pushes down the ELBO of generated images of the forgotten labels, with replay and the penalty (the paper's Eq. 3)."""
    cvae, original = deepcopy(task.cvae), task.cvae
    distance = penalty(cvae, original, task.fim)
    torch.manual_seed(task.seed)

    def loss():
        c_f, c_r = some(task.forgotten, task.batch_size // 8), some(task.kept, task.batch_size)
        forget = sum(elbo_terms(cvae, replay(original, c_f), one_hot(c_f)))
        remember = sum(elbo_terms(cvae, replay(original, c_r), one_hot(c_r)))
        return {"forget": -forget.clamp_max(CEILING).mean(), "remember": remember.mean(), "protect": lam / 2 * distance()}

    return task.minimise(cvae, loss)


def neggrad(task):
    """NegGrad+ (Kurmanji et al. 2023): gradient ascent on real images to forget, descent on real images to keep."""
    cvae, (forgotten, kept) = deepcopy(task.cvae), (task.train.only(c.tolist()) for c in (task.forgotten, task.kept))
    torch.manual_seed(task.seed)

    def loss():
        forget = sum(elbo_terms(cvae, *forgotten.batch(task.batch_size // 8)))
        return {"forget": -forget.clamp_max(CEILING).mean(),
                "remember": sum(elbo_terms(cvae, *kept.batch(task.batch_size))).mean()}

    return task.minimise(cvae, loss)


def random_label(task, salient=1.0):
    """Images of random kept labels under the forgotten label, with replay of the kept labels.

    salient: the share of the weights, largest gradient of the forgotten labels' ELBO first, that may change.
    """
    cvae, original = deepcopy(task.cvae), task.cvae
    torch.manual_seed(task.seed)
    if salient < 1:
        labels = some(task.forgotten, 5000)
        nelbo = sum(elbo_terms(cvae, original.generate(labels), one_hot(labels))).mean()
        sizes = [gradient.abs() for gradient in torch.autograd.grad(nelbo, list(cvae.parameters()))]
        threshold = torch.cat([size.flatten() for size in sizes]).quantile(1 - salient)
        for p, size in zip(cvae.parameters(), sizes, strict=True):
            p.register_hook(lambda gradient, mask=size >= threshold: gradient * mask)

    def loss():
        c_f, other, c_r = (some(labels, n) for labels, n in (
            (task.forgotten, task.batch_size // 8), (task.kept, task.batch_size // 8), (task.kept, task.batch_size)))
        forget = sum(elbo_terms(cvae, replay(original, other), one_hot(c_f)))
        return {"forget": forget.mean(), "remember": sum(elbo_terms(cvae, replay(original, c_r), one_hot(c_r))).mean()}

    return task.minimise(cvae, loss)


def saliency(task):
    """SalUn (Fan et al. 2024) for this model: random labels, learned by the half of the weights that matter most."""
    return random_label(task, salient=0.5)


@torch.no_grad()
def dampening(task, alpha=3.0, lam=1.0):
    """Selective synaptic dampening (Foster et al. 2024): theta <- theta * min(lam F / F_f, 1) where F_f > alpha F.

    F_f is the Fisher information of the forgotten labels' generated images alone. Nothing is trained.
    """
    cvae = deepcopy(task.cvae)
    torch.manual_seed(task.seed)
    with torch.enable_grad():
        theirs = diagonal_fisher(cvae, 5000 * len(task.forgotten), labels=task.forgotten)
    for name, p in cvae.named_parameters():
        factor = (lam * task.fim[name] / theirs[name].clamp_min(1e-30)).clamp_max(1)
        p.mul_(torch.where(theirs[name] > alpha * task.fim[name], factor, 1.0))
    return cvae


def label_edit(task):
    """Trains the decoder's input column of each forgotten label towards noise, z from the prior, and nothing else.

    Every output for a kept label stays as it was to the bit.
    """
    cvae = deepcopy(task.cvae)
    columns = torch.zeros_like(cvae.decoder[0].weight)
    columns[:, cvae.latent_dim + task.forgotten] = 1
    for name, p in cvae.named_parameters():
        p.requires_grad_(name == "decoder.0.weight")
    cvae.decoder[0].weight.register_hook(lambda gradient: gradient * columns)
    torch.manual_seed(task.seed)

    def loss():
        c_f = some(task.forgotten, task.batch_size)
        logits = cvae.decode(torch.randn(len(c_f), cvae.latent_dim, device=c_f.device), one_hot(c_f))
        return {"forget": bernoulli_nll(logits, torch.rand_like(logits)).mean()}

    return task.minimise(cvae, loss).requires_grad_()
