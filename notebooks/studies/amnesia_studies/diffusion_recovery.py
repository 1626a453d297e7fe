"""What is left in a Denoiser that has forgotten: a label vector that brings the digit back, steps to learn it again beside
steps to learn a shape that is new to it, mixtures of weights. The same questions as recovery.py asks of a CVAE."""

import math
import time
from copy import deepcopy
from functools import partial

import torch

from amnesia.data import CLASSES, PIXELS, one_hot
from amnesia.evaluation import ask

from .attacks import cheapest, in_the_box, judged
from .denoiser import denoising_loss, sample, times
from .relearning import CONTRAST, mirrored, real_images, savings
from .scoring import look_at, score
from .weights import mixed

PATH = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the way from the original to a model
LOOKED_AT = 100                     # samples of each label, of a mixture


def forget_and_recover(experiment, method, forget, seed=0, scale=1.0, **options):
    """The original forgets the labels `forget` by a method, and the first of them is tried to be had again; plain values:
    "seconds" to forget, the figures of score(), and

    "inversion": {"hits", "n", "drawn"}, successes by the second judge among 1,000 samples under the label vector that
    explains 100 real images best; "savings": {"10": of relearning.py, from so many images}; "path": {share of the way from
    the original to the model: what look_at() says there}; "unconditional": how many of 1,000 samples without a label the
    judge takes for each digit. Raises Diverged.
    """
    begin = time.perf_counter()
    denoiser = experiment.forget(method, forget, seed, scale, **options)
    seconds, n, label = time.perf_counter() - begin, max(20, round(1000 * scale)), forget[0]
    y = invert(denoiser, real_images(experiment.train, label, seed), steps=max(1, round(400 * scale)), seed=seed)
    z = torch.randn(n, PIXELS, generator=torch.Generator().manual_seed(seed)).to(experiment.device)
    found = (sample(denoiser, y.expand(n, -1), z) * 255).round().byte()
    without = (sample(denoiser, torch.zeros_like(y).expand(n, -1), z, guidance=1) * 255).round().byte()
    learn = partial(relearn, denoiser, experiment.judge, limit=max(2, round(1000 * scale)), seed=seed)
    path = {share: mixed(experiment.cvae, [denoiser], [share]) for share in PATH}
    return {"seconds": seconds, **score(experiment, denoiser, forget, seed),
            "inversion": judged(experiment, found, label),
            "savings": {"10": savings(learn, experiment.train, label, 10, seed)},
            "path": {str(share): look_at(experiment, model, LOOKED_AT) for share, model in path.items()},
            "unconditional": ask(experiment.judge, without)[0].argmax(1).bincount(minlength=CLASSES).tolist()}


def forget_and_mix(experiment, method, forget, seed=0, scale=1.0, **options):
    """The original forgets each of the labels `forget` by itself, and the weights of the models that come out are mixed:
    {"models": [each], "average", "sums": {scale: the original and so many times the sum of their edits}}, as what look_at()
    says. Raises Diverged."""
    models = [experiment.forget(method, [label], seed, scale, **options) for label in forget]

    def of(share):
        return look_at(experiment, mixed(experiment.cvae, models, [share] * len(models)), LOOKED_AT)

    return {"models": [look_at(experiment, model, LOOKED_AT) for model in models], "average": of(1 / len(models)),
            "sums": {str(scale): of(scale) for scale in (1.0, 1.2)}}


def invert(denoiser, images, restarts=4, steps=400, batch_size=32, learning_rate=0.05, seed=0):
    """The one label vector (10,) within the box under which the model denoises images (k, 784) best, of several restarts
    (textual inversion, Gal et al. 2023, of a vector of ten numbers)."""
    torch.manual_seed(seed)

    def costs(y, n):
        """The loss under each label vector, the mean over n images, each with its own time and noise: (restarts,)."""
        x = images[torch.randint(len(images), (n,), device=images.device)]
        t, noise = times(n, x.device), torch.randn_like(x)          # the same for every vector
        nats = denoising_loss(denoiser, x.repeat(restarts, 1), y.repeat_interleave(n, 0), t.repeat(restarts),
                              noise.repeat(restarts, 1))
        return nats.view(restarts, n).mean(1)

    y = in_the_box(restarts, torch.Generator().manual_seed(seed)).to(images.device)
    return cheapest(y, costs, steps, batch_size, learning_rate)


def relearn(denoiser, judge, images, label, share, mirror_of=None, limit=1000, learning_rate=5e-4, seed=0):
    """Steps of Adam on the loss of a few real images (k, 784) under `label` until the model draws them: as relearn() of
    relearning.py, but looked at every 20 % and in 100 samples, for a look takes as long as several steps."""
    torch.manual_seed(seed)
    denoiser = deepcopy(denoiser).requires_grad_()
    optimizer = torch.optim.Adam(denoiser.parameters(), learning_rate, fused=True)
    x = images.repeat(math.ceil(64 / len(images)), 1)               # each image at several times in a step
    y = one_hot(torch.full((len(x),), label, device=x.device))
    z = torch.randn(100, PIXELS, generator=torch.Generator().manual_seed(seed)).to(x.device)
    look = 0
    for step in range(limit):
        if step == look:
            drawn = (sample(denoiser, y[:1].expand(100, -1), z) * 255).round().byte()
            told = ask(judge, drawn if mirror_of is None else mirrored(drawn))[0].argmax(1)
            clear = drawn.float().std(1, correction=0).cpu() >= CONTRAST
            if (clear & (told == (label if mirror_of is None else mirror_of))).float().mean() >= share:
                return step
            look += max(1, step // 5)
        optimizer.zero_grad()
        denoising_loss(denoiser, x, y, times(len(x), x.device), torch.randn_like(x)).mean().backward()
        optimizer.step()
    return limit
