"""One run and all that may bring the forgotten label back: every attack of attacks.py, relearning, resurgence."""

import time

import torch

from amnesia.storage.parameters import forget_set

from .attacks import SEARCHES, drawn, invert, recognised, relearn, search, search_label, successes
from .bounds import fine_tune
from .scoring import score
from .sweep import pack


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
            "attacks": attack(experiment, cvae, label, real, seed, scale, restarts),
            "relearning": {str(k): steps_to_relearn(experiment, cvae, label, real[:k], seed, scale) for k in (10, 100)},
            "resurgence": score(experiment, tuned, forget, seed)}


def forget_and_search_label(experiment, method, forget, seed=0, scale=1.0, **options):
    """The original forgets the labels `forget`, and one label vector is searched that draws the first again, whatever
    the z: {"hits", "n", "drawn"} of 1,000 samples under it, as in forget_and_recover. Raises Diverged."""
    cvae, n = experiment.forget(method, forget, seed, scale, **options), max(20, round(1000 * scale))
    y = search_label(cvae, experiment.judge, forget[0], steps=max(1, round(150 * scale)), seed=seed)
    z = torch.randn(n, cvae.latent_dim, generator=torch.Generator().manual_seed(seed)).to(experiment.device)
    return judged(experiment, drawn(cvae, z, y.expand(n, -1)), forget[0])


def judged(experiment, images, label):
    """What the second judge says of the images (n, 784) that an attack found: {"hits", "n"}, and eight of them, "drawn"."""
    hits = successes(experiment.second_judge, images, label).sum().item()
    return {"hits": hits, "n": len(images), "drawn": pack(images[:8])}


def real_images(experiment, label, seed):
    """A hundred training images of a label, (100, 784) in [0, 1]."""
    digits = experiment.train.only([label])
    return digits.images[torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))[:100]].float() / 255


def attack(experiment, cvae, label, real, seed, scale, restarts):
    """Each search from so many restarts, and 1,000 samples of each inversion from 10 and from 100 of the real images."""
    generator, n, found = torch.Generator().manual_seed(seed), max(20, round(1000 * scale)), {}
    for kind in SEARCHES:
        z, y = search(cvae, experiment.judge, label, kind, restarts, steps=max(1, round(150 * scale)), seed=seed)
        found[kind] = drawn(cvae, z, y)
    for k in (10, 100):
        y = invert(cvae, real[:k], steps=max(1, round(400 * scale)), seed=seed)
        z = torch.randn(n, cvae.latent_dim, generator=generator).to(experiment.device)
        found[f"inversion from {k} images"] = drawn(cvae, z, y.expand(n, -1))
    return {name: judged(experiment, images, label) for name, images in found.items()}


def steps_to_relearn(experiment, cvae, label, images, seed, scale):
    """Steps until the model draws the label nine tenths as recognisably as the original does."""
    z = torch.randn(1000, cvae.latent_dim, generator=torch.Generator().manual_seed(0)).to(experiment.device)
    aim = 0.9 * recognised(experiment.cvae, experiment.judge, label, z)
    return relearn(cvae, experiment.judge, images, label, aim, limit=max(2, round(1000 * scale)), seed=seed)
