"""One run and all that may bring the forgotten label back: every attack of attacks.py, relearning, other weights."""

import time
from functools import partial

import torch

from amnesia.data import CLASSES, Digits, one_hot
from amnesia.storage.parameters import forget_set

from .attacks import attack_all, draw, judged, search_label
from .bounds import fine_tune
from .methods.references import train_from_scratch
from .relearning import real_images, relearn, savings
from .scoring import look_at, score
from .sweep import images_to_text
from .weights import exchanged, mixed, rounded

WAY = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of the way from one model to another


def forget_and_recover(experiment, method, forget, seed=0, scale=1.0, restarts=200, **options):
    """The original forgets the labels `forget` by a METHOD with these options, and the first of them is tried to be had
    again; plain values: "seconds" to forget, the figures of score(), and

    "attacks": {attack or "inversion from k images": {"hits", "n", "drawn"}}, successes by the second judge and eight
    pictures; "savings": {k: of relearning.py}; "resurgence": figures after training on kept labels. Raises Diverged.
    """
    begin = time.perf_counter()
    cvae = experiment.forget(method, forget, seed, scale, **options)
    seconds = time.perf_counter() - begin
    label, real = forget[0], real_images(experiment.train, forget[0], seed)
    tuned = fine_tune(cvae, experiment.train.only(forget_set(forget)[1]), steps=max(1, round(1000 * scale)), seed=seed)
    return {"seconds": seconds, **score(experiment, cvae, forget, seed),
            "attacks": attack_all(experiment, cvae, label, real, seed, scale, restarts),
            "savings": all_savings(experiment, cvae, label, seed, scale),
            "resurgence": score(experiment, tuned, forget, seed)}


def forget_and_search_label(experiment, method, forget, seed=0, scale=1.0, **options):
    """The original forgets the labels `forget`, and one label vector is searched that draws the first again, whatever
    the z: {"hits", "n", "drawn"} of 1,000 samples under it, as in forget_and_recover. Raises Diverged."""
    cvae, n = experiment.forget(method, forget, seed, scale, **options), max(20, round(1000 * scale))
    y = search_label(cvae, experiment.judge, forget[0], steps=max(1, round(150 * scale)), seed=seed)
    z = torch.randn(n, cvae.latent_dim, generator=torch.Generator().manual_seed(seed)).to(experiment.device)
    return judged(experiment, draw(cvae, z, y.expand(n, -1)), forget[0])


def forget_and_relearn(experiment, method, forget, seed=0, scale=1.0, rank=None, **options):
    """The original forgets the labels `forget` by a METHOD with these options, and the first is taught again: "savings":
    {k: of relearning.py}. Raises Diverged.

    rank: of adapters that are trained in the place of the weights, at ten times their rate. A reference of the original's
    own seed starts from the original's initial weights: take another one for a control.
    """
    cvae, adapters = experiment.forget(method, forget, seed, scale, **options), {}
    if rank:
        adapters = {"rank": rank, "learning_rate": 1e-2}
    return {"savings": all_savings(experiment, cvae, forget[0], seed, scale, **adapters)}


def all_savings(experiment, cvae, label, seed, scale, **options):
    """{k: savings()} for 10 and for 100 images; plain values."""
    limit = max(2, round(1000 * scale))
    learn = partial(relearn, cvae, experiment.judge, limit=limit, seed=seed, **options)
    return {str(k): savings(learn, experiment.train, label, k, seed) for k in (10, 100)}


def forget_and_alter(experiment, method, forget, seed=0, scale=1.0, **options):
    """The original forgets the labels `forget` by a METHOD with these options, and its weights are altered. Each value is
    what look_at() says. Raises Diverged.

    "line": {share of the way from the original to the new model: …}, beyond it too; "rounded": {bits: …}; "exchanged":
    {decoder layers that are the original's, joined by " + ": …}; "turned": after training on the kept labels' images turned
    by a quarter, which are other pictures; "drawn": the first label along the line, as text.
    """
    cvae = experiment.forget(method, forget, seed, scale, **options)
    line = {share: mixed(experiment.cvae, [cvae], [share]) for share in (*WAY, 1.5, 2.0)}
    kept = experiment.train.only(forget_set(forget)[1])
    turned = Digits(kept.images.view(-1, 28, 28).rot90(dims=(1, 2)).flatten(1), kept.labels, "turned digits")
    tuned = fine_tune(cvae, turned, steps=max(1, round(1000 * scale)), seed=seed)
    parts = [["decoder.0"], ["decoder.2"], ["decoder.4"], ["decoder.0", "decoder.2"]]
    return {"line": {str(share): look_at(experiment, model) for share, model in line.items()},
            "rounded": {str(bits): look_at(experiment, rounded(cvae, bits)) for bits in (8, 6, 4)},
            "exchanged": {" + ".join(layers): look_at(experiment, exchanged(cvae, experiment.cvae, layers))
                          for layers in parts},
            "turned": look_at(experiment, tuned),
            "drawn": images_to_text(torch.cat([sketch(experiment, model, forget[:1]) for model in line.values()]))}


def forget_apart(experiment, method, forget, seed=0, scale=1.0, seeds_apart=0, **options):
    """The original forgets each of the labels `forget` in a model of its own, by a METHOD with these options, and their
    weights are mixed: see mix(). seeds_apart: from one model's seed to the next one's. Raises Diverged."""
    models = [experiment.forget(method, [label], seed + i * seeds_apart, scale, **options) for i, label in enumerate(forget)]
    return mix(experiment, models)


def originals_apart(experiment, forget, seed=0, scale=1.0):
    """The control of forget_apart: as many originals as there are labels, none of which forgets anything, trained anew
    from seeds that follow each other, and their weights mixed: see mix()."""
    tasks = [experiment.task(forget, seed + i, scale) for i in range(len(forget))]
    return mix(experiment, [train_from_scratch(task, task.train) for task in tasks])


def mix(experiment, models):
    """What look_at() says of models and of their weights together; plain values.

    "models": [each]; "average"; "sums": {scale: of the original plus so many times the sum of their edits}; "line": {share
    of the way from the first to the second: …}; "drawn": an image of each label by each model, then by their average, as
    text.
    """
    original, n = experiment.cvae, len(models)
    average = mixed(original, models, [1 / n] * n)
    sums = {scale: mixed(original, models, [scale] * n) for scale in (1.0, 1.2, 2.0)}
    line = {share: mixed(models[0], [models[1]], [share]) for share in WAY}
    drawn = torch.cat([sketch(experiment, model, range(CLASSES)) for model in (*models, average)])
    return {"models": [look_at(experiment, model) for model in models], "average": look_at(experiment, average),
            "sums": {str(scale): look_at(experiment, model) for scale, model in sums.items()},
            "line": {str(share): look_at(experiment, model) for share, model in line.items()},
            "drawn": images_to_text(drawn)}


def sketch(experiment, cvae, labels):
    """An image of each label, bytes (n, 784), always from the same z."""
    z = torch.randn(1, cvae.latent_dim, generator=torch.Generator().manual_seed(1)).to(experiment.device)
    y = one_hot(torch.tensor(list(labels), device=experiment.device))
    return draw(cvae, z.expand(len(y), -1), y)
