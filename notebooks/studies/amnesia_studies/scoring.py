"""One run and its figures: a method forgets, and the judge, the bounds and the distances say what became of it."""

import time

import torch

from amnesia.data import CLASSES
from amnesia.evaluation import ask, entropy, model_metrics
from amnesia.fisher import diagonal_fisher
from amnesia.storage.parameters import forget_set
from amnesia.training import Diverged

from .bounds import importance_weighted_bound, refit_encoder
from .methods import Task, distilled, selective_amnesia


def forget_and_score(experiment, method, forget, seed=0, scale=1.0, bounds=False, **options):
    """One run: the original forgets the labels `forget` by a METHOD with these options; its figures, as plain values.

    The seed is that of the method and of the samples that are scored. bounds: also the tighter bounds, which take half a
    minute. A run that diverges returns {"diverged": why}.
    """
    begin = time.perf_counter()
    try:
        cvae = experiment.forget(method, forget, seed, scale, **options)
    except Diverged as error:
        return {"diverged": str(error)}
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, **score(experiment, cvae, forget, seed),
            **(tight_bounds(experiment, cvae, forget, scale) if bounds else {})}


def forget_in_turn(experiment, forget, seed=0, scale=1.0, remember="replay"):
    """Forgets the labels of `forget` one after another, each round from the last one's model and its own Fisher information.

    remember: "replay" rehearses what has not been forgotten so far; "distil" holds every label but the new one to the last
    model's answers, those forgotten earlier too. Returns {"rounds": [figures after each]}, and with them "drawn", four
    samples of each label forgotten so far: bytes (labels, 4, 28, 28), always from the same z.
    """
    cvae, fim, rounds = experiment.cvae, experiment.fim, []
    z = torch.randn(4, cvae.latent_dim, generator=torch.Generator().manual_seed(seed)).to(experiment.device)
    for count in range(1, len(forget) + 1):
        so_far, kept = forget_set(forget[:count])
        held, method = {"replay": (kept, selective_amnesia), "distil": (kept + forget[:count - 1], distilled)}[remember]
        labels, held = (torch.tensor(some, device=experiment.device) for some in (forget[:count], held))
        cvae = method(Task(cvae, fim, experiment.train, labels[-1:], held, seed, scale))
        fim = diagonal_fisher(cvae, max(1, round(50_000 * scale)))
        drawn = cvae.generate(labels.repeat_interleave(4), z.repeat(count, 1)).view(count, 4, 28, 28)
        rounds.append({**score(experiment, cvae, so_far, seed), "drawn": (drawn * 255).round().byte().tolist()})
    return {"rounds": rounds}


def score(experiment, cvae, forget, seed=0):
    """The figures of evaluation-<digits>.json; precision and recall, means over kept labels; P and H of each label."""
    (forgotten, kept), n = forget_set(forget), experiment.samples
    z = torch.randn(CLASSES * n, cvae.latent_dim, generator=torch.Generator().manual_seed(seed)).to(experiment.device)
    labels = torch.arange(CLASSES, device=experiment.device).repeat_interleave(n)
    samples = (cvae.generate(labels, z) * 255).round().byte().view(CLASSES, n, 28, 28)
    probabilities, features = (values.view(CLASSES, n, -1) for values in ask(experiment.judge, samples))
    pairs = [precision_recall(features[label], experiment.real_features[label]) for label in kept]
    precision, recall = (sum(values) / len(kept) for values in zip(*pairs, strict=True))
    return {**model_metrics(experiment.judge, samples, cvae, experiment.test, forgotten, kept, experiment.real,
                            experiment.bound),
            "precision": precision, "recall": recall,
            "P": [probabilities[label, :, label].mean().item() for label in range(CLASSES)],
            "H": entropy(probabilities).mean(1).tolist()}


def look_at(experiment, cvae, n=500):
    """What the judge says of n samples of each label: {"P", "H", "share", "contrast"}, a list of ten each: mean probability
    of the label, mean entropy, share whose most likely label it is, mean sd of a picture's pixels in grey levels."""
    z = torch.randn(CLASSES * n, cvae.latent_dim, generator=torch.Generator().manual_seed(0)).to(experiment.device)
    labels = torch.arange(CLASSES).repeat_interleave(n)
    samples = (cvae.generate(labels.to(experiment.device), z) * 255).round().byte()
    probabilities = ask(experiment.judge, samples)[0]
    values = {"P": probabilities.gather(1, labels[:, None]), "H": entropy(probabilities),
              "share": (probabilities.argmax(1) == labels).float(),
              "contrast": samples.float().std(1, correction=0).cpu()}
    return {name: value.view(CLASSES, n).mean(1).tolist() for name, value in values.items()}


def precision_recall(samples, real, k=3):
    """(precision, recall) of features (N, D) against real ones (M, D): the share of each set that lies within the other's
    k-nearest-neighbour balls (Kynkaanniemi et al. 2019). Low recall is mode collapse, low precision is unreal samples."""
    def share_inside(points, others):
        radii = torch.cdist(others, others).kthvalue(min(k + 1, len(others)), 1).values  # + 1: each is its own nearest
        return (torch.cdist(points, others) <= radii).any(1).float().mean().item()

    return share_inside(samples, real), share_inside(real, samples)


def tight_bounds(experiment, cvae, forget, scale=1.0):
    """Means over real test images, nats: the 64-sample bound of forgotten labels and of 2,000 kept images, and the 64-sample
    bound of forgotten labels after refitting the encoder to the frozen decoder on real images."""
    forgotten, kept = forget_set(forget)
    gone, rest = experiment.test.only(forgotten), experiment.test.only(kept)
    rest.images, rest.labels = rest.images[:2000], rest.labels[:2000]
    refitted = refit_encoder(cvae, experiment.train.only(forgotten), steps=max(1, round(600 * scale)))
    return {"forgotten_iw": importance_weighted_bound(cvae, gone).mean().item(),
            "kept_iw": importance_weighted_bound(cvae, rest).mean().item(),
            "forgotten_refitted_iw": importance_weighted_bound(refitted, gone).mean().item()}
