"""How fast a model learns the forgotten label again, beside how fast it learns anything at all under that label.

Steps alone say little: a label that was never trained learns whatever it is shown in a third of the steps of one that
means grey. So the same model is taught, under the same label, shapes that no model has seen: mirror images of digits.
"""

import math
from copy import deepcopy

import torch

from amnesia import ask, one_hot

from .denoiser import Denoiser, draw, latents, nats

MIRRORED = (4, 5, 6, 7, 9)  # whose mirror images are no digits; a mirrored 2 does not serve, as grey is taken for a 2
CONTRAST = 40.0  # grey levels, the sd of a picture's pixels: more than 19 in 20 of the original's zeros and eights have it


def mirrored(images, shape=(1, 28, 28)):
    """Images (n, P) of this shape (C, H, W), left and right exchanged."""
    return images.view(-1, *shape).flip(3).flatten(1)


def recognised(model, judge, label, z, mirror_of=None):
    """The share of what the latents z (N, latent_dim) draw under `label` that has CONTRAST and is taken for it by the judge.

    mirror_of: a digit; then the pictures are mirrored back, and must be taken for this one. The contrast is asked for since
    a judge may take any shade of grey for a digit.
    """
    images = draw(model, z, one_hot(torch.full((len(z),), label, device=z.device), model.classes))
    seen = ask(judge, images if mirror_of is None else mirrored(images, judge.config["shape"]))[0].argmax(1)
    clear = images.float().std(1, correction=0).cpu() >= CONTRAST
    return (clear & (seen == (label if mirror_of is None else mirror_of))).float().mean().item()


def relearn(model, judge, images, label, mirror_of=None, limit=1000, seed=0):
    """Steps of Adam on what a few real images (k, 784) cost under `label`, see nats(), until the model draws them.

    That is, until recognised() says at least 0.85 of 200 samples, always from the same z, of mirror images 0.7; looked at
    after every step at first, then every 5 %. Of a Denoiser, 100 samples and every 20 %, for a look takes as long as several
    steps, and each image at several times in a step. 0 if it draws them already; `limit` if it never does. The images are
    those of the label, or mirror images of `mirror_of`.
    """
    torch.manual_seed(seed)
    diffusion, enough = isinstance(model, Denoiser), 0.85 if mirror_of is None else 0.7
    n, part, learning_rate = (100, 5, 5e-4) if diffusion else (200, 20, 1e-3)
    model = deepcopy(model).requires_grad_()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, fused=diffusion)
    z = latents(model, n, seed)
    x = images.repeat(math.ceil(64 / len(images)), 1) if diffusion else images
    y, done = one_hot(torch.full((len(x),), label, device=x.device), model.classes), 0
    while done < limit and recognised(model, judge, label, z, mirror_of) < enough:
        steps = min(limit - done, max(1, done // part))
        for _ in range(steps):
            optimizer.zero_grad()
            nats(model, x, y).mean().backward()
            optimizer.step()
        done += steps
    return done


def real_images(digits, label, seed, n=100):
    """So many images of a label, (n, 784) in [0, 1]."""
    digits = digits.only([label])
    return digits.images[torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))[:n]].float() / 255


def savings(experiment, model, label, seed=0, scale=1.0, ks=(10, 100)):
    """{k: steps to learn the label's digit from k real images, and mirror images of other digits under the same label}:
    {"digit": steps, "mirrored": {digit: steps}} each.

    The figure is the first over the mean of the second, beside that of a model whose label means the same but which never
    saw the digit: lower says that something is left that helps (savings in relearning, Ebbinghaus 1885). scale: of the
    thousand steps after which it is given up.
    """
    digits, limit = experiment.train, max(2, round(1000 * scale))

    def steps(shape, k):
        images, mirror_of = real_images(digits, shape, seed)[:k], None
        if shape != label:
            images, mirror_of = mirrored(images, digits.shape), shape
        return relearn(model, experiment.judge, images, label, mirror_of, limit, seed)

    shapes = [shape for shape in MIRRORED if shape != label and shape < len(digits.classes)]
    return {str(k): {"digit": steps(label, k), "mirrored": {str(shape): steps(shape, k) for shape in shapes}} for k in ks}
