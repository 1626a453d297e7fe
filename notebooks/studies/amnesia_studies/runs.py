"""What a run is: an experiment's original forgets by a method, and something is measured. Each log holds the runs of one
function of these, see RUNS; every result is plain values, or {"diverged": why}."""

import time
from functools import partial, wraps
from inspect import signature

import torch

from amnesia.data import one_hot
from amnesia.evaluation import ask
from amnesia.fisher import diagonal_fisher
from amnesia.training import Diverged

from .attacks import attack, invert, search_label
from .denoiser import Denoiser, draw
from .logs import images_to_text
from .methods import distilled, selective_amnesia, train_from_scratch
from .relearning import real_images, relearn, savings
from .scoring import fine_tune, look_at, score, tight_bounds
from .weights import exchanged, mixed, rounded


def forgetting(measure):
    """A run that forgets the labels `forget` by a METHOD, or by a function of a Task, and measures the new model.

    The seed is that of the method and of what is measured; options: the method's, but for those that `measure` names.
    """
    @wraps(measure)
    def run(experiment, method, forget, seed=0, scale=1.0, **options):
        own = {name: options.pop(name) for name in signature(measure).parameters.keys() & options.keys()}
        begin = time.perf_counter()
        try:
            model = experiment.forget(method, forget, seed, scale, **options)
        except Diverged as error:
            return {"diverged": str(error)}
        return {"seconds": time.perf_counter() - begin, **measure(experiment, model, forget, seed, scale, **own)}

    return run


@forgetting
def forget_and_score(experiment, model, forget, seed, scale, bounds=False):
    """The figures of score(). bounds: also the tighter bounds, which take half a minute."""
    return {**score(experiment, model, forget, seed), **(tight_bounds(experiment, model, forget, scale) if bounds else {})}


@forgetting
def forget_and_recover(experiment, model, forget, seed, scale, restarts=200):
    """The figures of score(), and what may bring the first label back: "attacks": {name: {"hits", "n", "drawn"}}, successes
    by the second judge and eight pictures; "savings": {k: of relearning.py}; "resurgence": figures after training on kept
    labels."""
    label, real = forget[0], real_images(experiment.train, forget[0], seed)
    kept = experiment.train.only(experiment.split(forget)[1])
    tuned = fine_tune(model, kept, steps=max(1, round(1000 * scale)), seed=seed)
    found = attack(model, experiment.judge, label, real, seed, scale, restarts)
    return {**score(experiment, model, forget, seed),
            "attacks": {name: judged(experiment, images, label) for name, images in found.items()},
            "savings": all_savings(experiment, model, label, seed, scale),
            "resurgence": score(experiment, tuned, forget, seed)}


@forgetting
def forget_and_invert(experiment, model, forget, seed, scale, inside=False):
    """The figures of score(), and of the first label "inversion": {"hits", "n", "drawn"}, successes by the second judge in
    1,000 samples under the label vector that explains 100 real images best; "savings": {"10": of relearning.py}.

    inside: of a Denoiser, also "path": {share of the way from the original to the model: what look_at() says there}, and
    "unconditional": how many of 1,000 samples without a label the judge takes for each digit.
    """
    n, label, diffusion = max(20, round(1000 * scale)), forget[0], isinstance(model, Denoiser)
    y = invert(model, real_images(experiment.train, label, seed), restarts=4 if diffusion else 8,
               steps=max(1, round(400 * scale)), seed=seed)
    z = latents(model, n, seed)
    result = {**score(experiment, model, forget, seed),
              "inversion": judged(experiment, draw(model, z, y.expand(n, -1)), label),
              "savings": all_savings(experiment, model, label, seed, scale, [10])}
    if inside:
        without = ask(experiment.judge, draw(model, z, torch.zeros_like(y).expand(n, -1), guidance=1))[0].argmax(1)
        result |= {"path": along(experiment, experiment.original, model),
                   "unconditional": without.bincount(minlength=model.classes).tolist()}
    return result


@forgetting
def forget_and_search_label(experiment, model, forget, seed, scale):
    """One label vector is searched that draws the first label again, whatever the z: judged(), of 1,000 samples."""
    n = max(20, round(1000 * scale))
    y = search_label(model, experiment.judge, forget[0], steps=max(1, round(150 * scale)), seed=seed)
    return judged(experiment, draw(model, latents(model, n, seed), y.expand(n, -1)), forget[0])


@forgetting
def forget_and_relearn(experiment, model, forget, seed, scale):
    """The first label is taught again: "savings": {k: of relearning.py}.

    A reference of the original's own seed starts from the original's initial weights: take another one for a control."""
    return {"savings": all_savings(experiment, model, forget[0], seed, scale)}


@forgetting
def forget_and_alter(experiment, model, forget, seed, scale):
    """The model's weights are altered. Each value is what look_at() says: "line": {share of the way from the original to the
    new model: …}, beyond it too; "rounded": {bits: …}; "exchanged": {decoder layers that are the original's, joined by
    " + ": …}; "turned": after training on the kept labels' images turned by a quarter, which are other pictures; "drawn":
    the first label along the line, as text."""
    original, kept = experiment.original, experiment.train.only(experiment.split(forget)[1])
    turned = kept.of(kept.images.view(-1, *kept.shape).rot90(dims=(2, 3)).flatten(1), kept.labels)
    tuned = fine_tune(model, turned, steps=max(1, round(1000 * scale)), seed=seed)
    line = {share: mixed(original, [model], [share]) for share in (*experiment.way, 1.5, 2.0)}
    parts = "decoder.0", "decoder.2", "decoder.4", "decoder.0 + decoder.2"
    return {"line": {str(share): look_at(experiment, between) for share, between in line.items()},
            "rounded": {str(bits): look_at(experiment, rounded(model, bits)) for bits in (8, 6, 4)},
            "exchanged": {part: look_at(experiment, exchanged(model, original, part.split(" + "))) for part in parts},
            "turned": look_at(experiment, tuned), "drawn": sketch(line.values(), forget[:1])}


def forget_in_turn(experiment, forget, seed=0, scale=1.0, remember="replay"):
    """Forgets the labels of `forget` one after another, each round from the last one's model and its own Fisher information.

    remember: "replay" rehearses what has not been forgotten so far; "distil" holds every label but the new one to the last
    model's answers, those forgotten earlier too. Returns {"rounds": [figures after each]}, and with them "drawn", four
    samples of each label forgotten so far: bytes (labels, 4, 28, 28), always from the same z.
    """
    model, rounds = experiment.original, []
    task = experiment.task(forget, seed, scale)
    for count in range(1, len(forget) + 1):
        so_far, kept = experiment.split(forget[:count])
        held, method = {"replay": (kept, selective_amnesia), "distil": (kept + forget[:count - 1], distilled)}[remember]
        task.original, task.forgotten, task.kept = (model, *(torch.tensor(labels, device=experiment.device)
                                                             for labels in (forget[count - 1:count], held)))
        model = method(task)
        task.fim = diagonal_fisher(model, max(1, round(50_000 * scale)))
        y = one_hot(torch.tensor(forget[:count], device=experiment.device), model.classes).repeat_interleave(4, 0)
        drawn = draw(model, latents(model, 4, seed).repeat(count, 1), y).view(count, 4, *experiment.train.shape[1:])
        rounds.append({**score(experiment, model, so_far, seed), "drawn": drawn.tolist()})
    return {"rounds": rounds}


def forget_apart(experiment, method, forget, seed=0, scale=1.0, seeds_apart=0, **options):
    """The original forgets each of the labels `forget` in a model of its own, and their weights are mixed: see mix().
    seeds_apart: from one model's seed to the next one's."""
    try:
        models = [experiment.forget(method, [label], seed + i * seeds_apart, scale, **options)
                  for i, label in enumerate(forget)]
    except Diverged as error:
        return {"diverged": str(error)}
    return mix(experiment, models)


def originals_apart(experiment, forget, seed=0, scale=1.0):
    """The control of forget_apart: as many originals as there are labels, none of which forgets anything, trained anew
    from seeds that follow each other, and their weights mixed: see mix()."""
    tasks = [experiment.task(forget, seed + i, scale) for i in range(len(forget))]
    return mix(experiment, [train_from_scratch(task, task.train) for task in tasks])


def mix(experiment, models):
    """What look_at() says of models and of their weights together: "models": [each]; "average"; "sums": {scale: of the
    original plus so many times the sum of their edits}; "line": {share of the way from the first to the second: …};
    "drawn": an image of each label by each model, then by their average, as text."""
    original, n = experiment.original, len(models)
    average = mixed(original, models, [1 / n] * n)
    return {"models": [look_at(experiment, model) for model in models], "average": look_at(experiment, average),
            "sums": {str(scale): look_at(experiment, mixed(original, models, [scale] * n)) for scale in (1.0, 1.2, 2.0)},
            "line": along(experiment, *models[:2]), "drawn": sketch([*models, average], range(original.classes))}


def along(experiment, start, end):
    """{share of the way from the start's weights to the end's: what look_at() says there}."""
    return {str(share): look_at(experiment, mixed(start, [end], [share])) for share in experiment.way}


def latents(model, n, seed):
    """n latents of the prior, or pictures of noise, by the seed: (n, latent_dim) on the model's device."""
    z = torch.randn(n, model.latent_dim, generator=torch.Generator().manual_seed(seed))
    return z.to(next(model.parameters()).device)


def sketch(models, labels):
    """An image of each label by each model, always from the same z, as text."""
    pictures, labels = [], torch.tensor(list(labels))
    for model in models:
        y, z = one_hot(labels, model.classes), latents(model, 1, seed=1)
        pictures.append(draw(model, z.expand(len(y), -1), y.to(z.device)))
    return images_to_text(torch.cat(pictures))


def judged(experiment, images, label, threshold=0.9):
    """How many of the images (n, 784) that an attack found the second judge takes for `label` with a probability above the
    threshold: {"hits", "n", "drawn"}, the last of which is eight of them as text."""
    hits = ask(experiment.second_judge, images)[0][:, label] > threshold
    return {"hits": hits.sum().item(), "n": len(images), "drawn": images_to_text(images[:8])}


def all_savings(experiment, model, label, seed, scale, ks=(10, 100)):
    """{k: savings() from so many images}; plain values."""
    learn = partial(relearn, model, experiment.judge, limit=max(2, round(1000 * scale)), seed=seed)
    return {str(k): savings(learn, experiment.train, label, k, seed) for k in ks}


# What the runs of each log did; a run of "studies" or "averages" without a method is another
RUNS = {"studies": forget_and_score, "springs": forget_and_score, "springs-5000": forget_and_score,
        "attacks": forget_and_recover, "savings": forget_and_relearn, "weights": forget_and_alter,
        "averages": forget_apart, "one-label": forget_and_search_label, "rows": forget_and_invert,
        "diffusion": forget_and_score, "diffusion-recovery": partial(forget_and_invert, inside=True),
        "diffusion-mixtures": forget_apart}
WITHOUT_METHOD = {"studies": forget_in_turn, "averages": originals_apart}
