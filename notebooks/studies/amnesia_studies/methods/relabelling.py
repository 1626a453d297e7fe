"""Methods that teach the forgotten label something else: images of other labels."""

from copy import deepcopy

import torch

from amnesia.data import one_hot
from amnesia.models import bernoulli_nll, negative_elbo_terms

from .task import replay, some


def random_label(task, salient=1.0):
    """Images of random kept labels under the forgotten label, with replay of the kept labels.

    salient: the share of the weights, largest gradient of the forgotten labels' ELBO first, that may change.
    """
    cvae, original = deepcopy(task.cvae), task.cvae
    torch.manual_seed(task.seed)
    if salient < 1:
        labels = some(task.forgotten, 5000)
        nelbo = sum(negative_elbo_terms(cvae, original.generate(labels), one_hot(labels))).mean()
        sizes = [gradient.abs() for gradient in torch.autograd.grad(nelbo, list(cvae.parameters()))]
        threshold = torch.cat([size.flatten() for size in sizes]).quantile(1 - salient)
        for p, size in zip(cvae.parameters(), sizes, strict=True):
            p.register_hook(lambda gradient, mask=size >= threshold: gradient * mask)

    def loss():
        c_f, other, c_r = (some(labels, n) for labels, n in (
            (task.forgotten, task.batch_size // 8), (task.kept, task.batch_size // 8), (task.kept, task.batch_size)))
        forget = sum(negative_elbo_terms(cvae, replay(original, other), one_hot(c_f)))
        remember = sum(negative_elbo_terms(cvae, replay(original, c_r), one_hot(c_r)))
        return {"forget": forget.mean(), "remember": remember.mean()}

    return task.minimise(cvae, loss)


def saliency(task):
    """SalUn (Fan et al. 2024) for this model: random labels, learned by the half of the weights that matter most."""
    return random_label(task, salient=0.5)


def feature(task):
    """Feature unlearning (Moon et al. 2024) for this model, whose features are labels: the decoder learns to draw under the
    forgotten label what the original draws from the same z under no label in particular, the mean of the kept labels'
    vectors, and holds to what it drew under the kept ones."""
    cvae, original = deepcopy(task.cvae), task.cvae
    nobody = one_hot(task.kept).mean(0)                                         # (10,)
    torch.manual_seed(task.seed)

    def reconstruction(z, told, asked):
        with torch.no_grad():
            target = original.decode(z, asked).sigmoid()
        return bernoulli_nll(cvae.decode(z, told), target).mean()

    def loss():
        y_f, y_r = (one_hot(some(labels, n)) for labels, n in
                    ((task.forgotten, task.batch_size // 8), (task.kept, task.batch_size)))
        z_f, z_r = (torch.randn(len(y), cvae.latent_dim, device=y.device) for y in (y_f, y_r))
        return {"forget": reconstruction(z_f, y_f, nobody.expand(len(y_f), -1)), "remember": reconstruction(z_r, y_r, y_r)}

    return task.minimise(cvae, loss)
