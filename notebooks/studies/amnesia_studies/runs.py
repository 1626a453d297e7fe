"""What a run is: an experiment's original forgets by a method, and something is measured. Each log holds the runs of one
function of these, see RUNS; every result is plain values."""

import time
from dataclasses import replace

import torch

from amnesia import ask, diagonal_fisher, one_hot

from .attacks import SEARCHES, invert, search, search_label
from .denoiser import Denoiser, draw, latents
from .logs import images_to_text
from .methods import distilled, selective_amnesia
from .relearning import real_images, savings
from .scoring import look_at, score, tight_bounds
from .weights import mixed, rounded


def forgotten(experiment, method, forget, seed, scale, **options):
    """(a model that has forgotten the labels `forget` by a METHOD, or by a function of a Task; the figures of score())."""
    begin = time.perf_counter()
    model = experiment.forget(method, forget, seed, scale, **options)
    return model, {"seconds": time.perf_counter() - begin, **score(experiment, model, forget, seed)}


def forget_and_score(experiment, method, forget, seed=0, scale=1.0, bounds=False, **options):
    """The figures of score(). bounds: also the tighter bounds, which take half a minute. options: the method's."""
    model, figures = forgotten(experiment, method, forget, seed, scale, **options)
    return figures | (tight_bounds(experiment, model, forget, scale) if bounds else {})


def forget_and_recover(experiment, method, forget, seed=0, scale=1.0, restarts=200, **options):
    """The figures of score(), and what may bring the first label back: "attacks": {name: judged()}, each of SEARCHES from so
    many restarts, and inversion(); "savings": {k: of relearning.py}."""
    model, figures = forgotten(experiment, method, forget, seed, scale, **options)
    found = {}
    for kind in SEARCHES:
        z, y = search(model, experiment.judge, forget[0], kind, restarts, max(1, round(150 * scale)), seed=seed)
        found[kind] = judged(experiment, draw(model, z, y), forget[0])
    found["inversion from 100 images"] = inversion(experiment, model, forget[0], seed, scale)
    return figures | {"attacks": found, "savings": savings(experiment, model, forget[0], seed, scale)}


def forget_and_invert(experiment, method, forget, seed=0, scale=1.0, **options):
    """The figures of score(), and of the first label its inversion() and "savings": {"10": of relearning.py}. Of a Denoiser
    also "unconditional": how many of 1,000 samples without a label the judge takes for each digit."""
    model, figures = forgotten(experiment, method, forget, seed, scale, **options)
    figures |= {"inversion": inversion(experiment, model, forget[0], seed, scale),
                "savings": savings(experiment, model, forget[0], seed, scale, [10])}
    if isinstance(model, Denoiser):
        images = draw_under(model, torch.zeros(model.classes), seed, scale, guidance=1)
        figures["unconditional"] = ask(experiment.judge, images)[0].argmax(1).bincount(minlength=model.classes).tolist()
    return figures


def forget_and_search_label(experiment, method, forget, seed=0, scale=1.0, **options):
    """One label vector is searched that draws the first label again, whatever the z: judged(), of 1,000 samples."""
    model = experiment.forget(method, forget, seed, scale, **options)
    y = search_label(model, experiment.judge, forget[0], steps=max(1, round(150 * scale)), seed=seed)
    return judged(experiment, draw_under(model, y, seed, scale), forget[0])


def forget_and_relearn(experiment, method, forget, seed=0, scale=1.0, **options):
    """The first label is taught again: "savings": {k: of relearning.py}.

    A reference of the original's own seed starts from the original's initial weights: take another one for a control."""
    model = experiment.forget(method, forget, seed, scale, **options)
    return {"savings": savings(experiment, model, forget[0], seed, scale)}


def forget_and_alter(experiment, method, forget, seed=0, scale=1.0, **options):
    """The model's weights are altered. Each value is what look_at() says: "line": {share of the way from the original to the
    new model: …}; "rounded": {bits: …}."""
    model = experiment.forget(method, forget, seed, scale, **options)
    return {"line": {str(i / 10): look_at(experiment, mixed(experiment.original, [model], [i / 10])) for i in range(11)},
            "rounded": {str(bits): look_at(experiment, rounded(model, bits)) for bits in (8, 6, 4)}}


def forget_in_turn(experiment, forget, seed=0, scale=1.0, remember="replay"):
    """Forgets the labels of `forget` one after another, each round from the last one's model and its own Fisher information.

    remember: "replay" rehearses what has not been forgotten so far; "distil" holds every label but the new one to the last
    model's answers, those forgotten earlier too. Returns {"rounds": [figures after each]}, and with them "drawn", four
    samples of each label forgotten so far: bytes (labels, 4, 28, 28), always from the same z.
    """
    model, fim, rounds = experiment.original, experiment.fim, []
    for count in range(1, len(forget) + 1):
        task, so_far = experiment.task(forget[:count], seed, scale), torch.tensor(forget[:count], device=experiment.device)
        task = replace(task, original=model, fim=fim, forgotten=so_far[-1:])
        if remember == "distil":
            model = distilled(replace(task, kept=torch.cat([task.kept, so_far[:-1]])))
        else:
            model = selective_amnesia(task)
        fim = diagonal_fisher(model, max(1, round(50_000 * scale)))
        y = one_hot(so_far, model.classes).repeat_interleave(4, 0)
        drawn = draw(model, latents(model, 4, seed).repeat(count, 1), y).view(count, 4, *experiment.train.shape[1:])
        rounds.append({**score(experiment, model, forget[:count], seed), "drawn": drawn.tolist()})
    return {"rounds": rounds}


def forget_apart(experiment, method, forget, seed=0, scale=1.0, **options):
    """The original forgets each of the labels `forget` in a model of its own, and their weights are mixed. Each value is what
    look_at() says: "models": [each]; "average"; "sums": {scale: of the original plus so many times the sum of their edits};
    but "drawn" is an image of each label by each model, then by their average, always from the same z, as text."""
    original, n = experiment.original, len(forget)
    models = [experiment.forget(method, [label], seed, scale, **options) for label in forget]
    average = mixed(original, models, [1 / n] * n)
    z = latents(original, 1, seed=1).expand(original.classes, -1)
    drawn = [draw(model, z, torch.eye(original.classes, device=z.device)) for model in (*models, average)]
    return {"models": [look_at(experiment, model) for model in models], "average": look_at(experiment, average),
            "sums": {str(scale): look_at(experiment, mixed(original, models, [scale] * n)) for scale in (1.0, 1.2)},
            "drawn": images_to_text(torch.cat(drawn))}


def inversion(experiment, model, label, seed, scale=1.0):
    """judged(), of 1,000 samples under the label vector that explains 100 real images of a label best."""
    real = real_images(experiment.train, label, seed)
    y = invert(model, real, steps=max(1, round(400 * scale)), seed=seed)
    return judged(experiment, draw_under(model, y, seed, scale), label)


def draw_under(model, y, seed, scale, **guided):
    """1,000 samples under one label vector y (10,)."""
    z = latents(model, max(20, round(1000 * scale)), seed)
    return draw(model, z, y.to(z.device).expand(len(z), -1), **guided)


def judged(experiment, images, label, threshold=0.9):
    """How many of the images (n, 784) that an attack found the second judge takes for `label` with a probability above the
    threshold: {"hits", "n", "drawn"}, the last of which is eight of them as text."""
    hits = ask(experiment.second_judge, images)[0][:, label] > threshold
    return {"hits": hits.sum().item(), "n": len(images), "drawn": images_to_text(images[:8])}


# What the runs of each log did; None: those of "studies" that have no method
RUNS = {"studies": forget_and_score, "springs": forget_and_score, "springs-5000": forget_and_score,
        "attacks": forget_and_recover, "savings": forget_and_relearn, "weights": forget_and_alter,
        "averages": forget_apart, "one-label": forget_and_search_label, "rows": forget_and_invert,
        "diffusion": forget_and_score, "diffusion-recovery": forget_and_invert, "diffusion-mixtures": forget_apart,
        None: forget_in_turn}
