"""One run and all that may bring the forgotten label back: every attack of attacks.py, relearning, resurgence."""

import time

import torch

from amnesia.storage.parameters import forget_set

from .attacks import attack_all, draw, judged, recognised, relearn, search_label
from .bounds import fine_tune
from .scoring import score


def forget_and_recover(experiment, method, forget, seed=0, scale=1.0, restarts=200, **options):
    """The original forgets the labels `forget` by a METHOD with these options, and the first of them is tried to be had
    again; plain values: "seconds" to forget, the figures of score(), and

    "attacks": {attack or "inversion from k images": {"hits", "n", "drawn"}}, successes by the second judge and eight
    pictures; "relearning": {k: steps}; "resurgence": figures after training on kept labels. Raises Diverged.
    """
    begin = time.perf_counter()
    cvae = experiment.forget(method, forget, seed, scale, **options)
    seconds = time.perf_counter() - begin
    label, real = forget[0], real_images(experiment, forget[0], seed)
    tuned = fine_tune(cvae, experiment.train.only(forget_set(forget)[1]), steps=max(1, round(1000 * scale)), seed=seed)
    return {"seconds": seconds, **score(experiment, cvae, forget, seed),
            "attacks": attack_all(experiment, cvae, label, real, seed, scale, restarts),
            "relearning": {str(k): steps_to_relearn(experiment, cvae, label, real[:k], seed, scale) for k in (10, 100)},
            "resurgence": score(experiment, tuned, forget, seed)}


def forget_and_search_label(experiment, method, forget, seed=0, scale=1.0, **options):
    """The original forgets the labels `forget`, and one label vector is searched that draws the first again, whatever
    the z: {"hits", "n", "drawn"} of 1,000 samples under it, as in forget_and_recover. Raises Diverged."""
    cvae, n = experiment.forget(method, forget, seed, scale, **options), max(20, round(1000 * scale))
    y = search_label(cvae, experiment.judge, forget[0], steps=max(1, round(150 * scale)), seed=seed)
    z = torch.randn(n, cvae.latent_dim, generator=torch.Generator().manual_seed(seed)).to(experiment.device)
    return judged(experiment, draw(cvae, z, y.expand(n, -1)), forget[0])


def real_images(experiment, label, seed):
    """A hundred training images of a label, (100, 784) in [0, 1]."""
    digits = experiment.train.only([label])
    return digits.images[torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))[:100]].float() / 255


def steps_to_relearn(experiment, cvae, label, images, seed, scale):
    """Steps until the model draws the label nine tenths as recognisably as the original does."""
    z = torch.randn(1000, cvae.latent_dim, generator=torch.Generator().manual_seed(0)).to(experiment.device)
    aim = 0.9 * recognised(experiment.cvae, experiment.judge, label, z)
    return relearn(cvae, experiment.judge, images, label, aim, limit=max(2, round(1000 * scale)), seed=seed)
