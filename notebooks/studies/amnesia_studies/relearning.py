"""How fast a model learns the forgotten digit again, beside how fast it learns anything at all under that label.

Steps alone say little: a label that was never trained learns whatever it is shown in a third of the steps of one that
means grey. So the same model is taught, under the same label, shapes that no model has seen: mirror images of digits.
"""

import itertools
from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils import parametrize

from amnesia.data import one_hot
from amnesia.evaluation import ask
from amnesia.models import negative_elbo_terms

from .attacks import draw

MIRRORED = (4, 5, 6, 7, 9)  # whose mirror images are no digits; a mirrored 2 does not serve, as grey is taken for a 2
CONTRAST = 40.0  # grey levels, the sd of a picture's pixels: more than 19 in 20 of the original's zeros and eights have it
SHARES = {"digit": 0.85, "mirrored": 0.7}  # of 200 samples, that must be recognised


def mirrored(images):
    """Images (n, 784), left and right exchanged."""
    return images.view(-1, 28, 28).flip(2).flatten(1)


def recognised(cvae, judge, label, z, mirror_of=None):
    """The share of what the latents z (N, latent_dim) draw under `label` that has CONTRAST and is taken for it by the judge.

    mirror_of: a digit; then the pictures are mirrored back, and must be taken for this one. The contrast is asked for since
    a judge may take any shade of grey for a digit.
    """
    images = draw(cvae, z, one_hot(torch.full((len(z),), label, device=z.device)))
    seen = ask(judge, images if mirror_of is None else mirrored(images))[0].argmax(1)
    clear = images.float().std(1, correction=0).cpu() >= CONTRAST
    return (clear & (seen == (label if mirror_of is None else mirror_of))).float().mean().item()


class LowRank(nn.Module):
    """A weight matrix plus b a, of a low rank; b starts at 0 (Hu et al. 2022)."""

    def __init__(self, weight, rank):
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight.shape[1], device=weight.device) / weight.shape[1] ** 0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

    def forward(self, weight):
        return weight + self.b @ self.a


def with_adapters(cvae, rank):
    """A copy in which nothing can be trained but a LowRank beside each weight matrix."""
    cvae = deepcopy(cvae).requires_grad_(False)
    for layer in cvae.modules():
        if isinstance(layer, nn.Linear):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return cvae


def relearn(cvae, judge, images, label, share, mirror_of=None, rank=None, limit=1000, learning_rate=1e-3, seed=0):
    """Steps of Adam on the ELBO of a few real images (k, 784) under `label` until the model draws them.

    That is, until recognised() says at least `share` of 200 samples, always from the same z; looked at after every step at
    first, then every 5 %. 0 if it draws them already; `limit` if it never does. The images are those of the digit, or
    mirror images of `mirror_of`. rank: of the adapters that are trained in the place of the weights, if any.
    """
    torch.manual_seed(seed)
    cvae = with_adapters(cvae, rank) if rank else deepcopy(cvae).requires_grad_()
    optimizer = torch.optim.Adam([p for p in cvae.parameters() if p.requires_grad], learning_rate)
    z = torch.randn(200, cvae.latent_dim, generator=torch.Generator().manual_seed(seed)).to(images.device)
    y = one_hot(torch.full((len(images),), label, device=images.device))
    look = 0
    for step in itertools.count():
        if step == look:
            if recognised(cvae, judge, label, z, mirror_of) >= share or step >= limit:
                return step
            look = min(limit, step + max(1, step // 20))
        optimizer.zero_grad()
        sum(negative_elbo_terms(cvae, images, y)).mean().backward()
        optimizer.step()


def real_images(digits, label, seed, n=100):
    """So many images of a label, (n, 784) in [0, 1]."""
    digits = digits.only([label])
    return digits.images[torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))[:n]].float() / 255


def savings(learn, digits, label, k, seed=0):
    """Steps to learn the label's digit from k real images, and mirror images of other digits under the same label:
    {"digit": steps, "mirrored": {digit: steps}}.

    The figure is the first over the mean of the second, beside that of a model whose label means the same but which never
    saw the digit: lower says that something is left that helps (savings in relearning, Ebbinghaus 1885). learn: relearn()
    of a model, or the like; digits: real images to learn from.
    """
    steps = learn(real_images(digits, label, seed)[:k], label, SHARES["digit"])
    return {"digit": steps, "mirrored": {
        str(shape): learn(mirrored(real_images(digits, shape, seed)[:k]), label, SHARES["mirrored"], shape)
        for shape in MIRRORED if shape != label}}
