"""Controls: what the studies find of a model that was made to forget, beside the same of a model that never knew.

python -m amnesia_studies.controls [words] runs what the log checkpoints/released/controls.jsonl lacks, on a CPU: only the
lines that hold all of these words, if there are any. It may be stopped, and goes on; any line is made anew by deleting it.
Models and their F, which take minutes and serve several lines, lie in the workspace (AMNESIA_WORKSPACE) as controls-*.pt.
"""

import json
import sys
import time
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from amnesia import Classifier, ask, diagonal_fisher, elbo, fit, jitter, negative_elbo_terms, one_hot
from amnesia.checkpoints import RELEASED
from amnesia.fisher import NegativeELBO

from .attacks import invert
from .denoiser import draw, latents, nats, to_bytes
from .experiment import Experiment
from .logs import Log, sweep
from .methods import METHODS, noise_pairs, oracle, replayed, retrain, train_from_scratch
from .relearning import MIRRORED, mirrored, real_images, savings
from .runs import inversion
from .scoring import look_at
from .weights import mixed, rounded

LOG = RELEASED / "controls.jsonl"


def stored(experiment, name, make, seed=0):
    """The tensors of make(), a dict, made from this seed and kept in the workspace under this name."""
    path = experiment.store.checkpoints / f"controls-{name}.pt"
    if not path.exists():
        torch.manual_seed(seed)
        torch.save(make(), path)
    return torch.load(path)


def origin(experiment, kind, seed, forget=(0,)):
    """(model, F), which a method is then given to forget these labels: "original", trained from this seed on all digits (the
    released one, if it is 0); or "retrain" and "oracle", trained from another seed without them."""
    if (kind, seed) == ("original", 0):
        return experiment.original, experiment.fim
    name = "-".join(map(str, (kind, seed, *(() if kind == "original" else forget))))
    task = experiment.task(forget, seed if kind == "original" else seed + 100)  # no initial weights that the original has
    train = {"original": lambda task: train_from_scratch(task, task.train), "retrain": retrain, "oracle": oracle}[kind]
    task.original.load_state_dict(stored(experiment, name, lambda: train(task).state_dict()))
    return task.original, stored(experiment, f"{name}-fim", lambda: diagonal_fisher(task.original, 50_000), seed)


def forgot(experiment, model, fim, label, seed, name="distilled amnesia", **options):
    """What one of METHODS, by default notebook 3's, makes of a model with this F."""
    return METHODS[name](replace(experiment.task([label], seed), original=model, fim=fim), **options).requires_grad_(False)


def information(experiment, of, model, kind):
    """F of `kind`, kept in the workspace under what the model is `of`: of mean images, "means", as in notebook 2; of "drawn"
    pixels; or "drawn, two z", by two_z(). Or the same for every weight, "identity"."""
    if kind == "identity":
        return {name: torch.ones_like(p) for name, p in model.named_parameters()}
    make = two_z if kind == "drawn, two z" else partial(diagonal_fisher, images=partial(replayed, model, drawn=kind == "drawn"))
    return stored(experiment, "-".join(map(str, (*of, "F", kind.replace(" ", "")))), lambda: make(model, 20_000))


@torch.no_grad()
def two_z(model, n, batch_size=50):
    """F of drawn pixels, with the product of an image's gradients by two z in the place of a square: it does not count the
    noise of z, and may be negative."""
    module, weights = NegativeELBO(model), {f"cvae.{name}": p for name, p in model.named_parameters()}

    def of_one(weights, *image):
        return functional_call(module, weights, tuple(part[None] for part in image))

    slopes, total = vmap(grad(of_one), (None, 0, 0, 0)), {name: torch.zeros_like(p) for name, p in weights.items()}
    for _ in range(0, n, batch_size):
        labels = torch.randint(model.classes, (batch_size,))
        x, y = replayed(model, labels, drawn=True), one_hot(labels, model.classes)
        one, other = (slopes(weights, x, y, torch.randn(batch_size, model.latent_dim)) for _ in range(2))
        for name, value in total.items():
            value += (one[name] * other[name]).sum(0) / n
    return {name.removeprefix("cvae."): value for name, value in total.items()}


def moved(model, layer, size):
    """A copy with each weight and bias of a layer moved by size, up or down at random."""
    model = deepcopy(model)
    for p in model.get_submodule(layer).parameters():
        p.data += size * (2 * torch.randint(2, p.shape) - 1)
    return model


def share(judge, images, label):
    """The share of images that a judge takes for this label."""
    return (ask(judge, images)[0].argmax(1) == label).float().mean().item()


def between(one, other, z, y):
    """Pictures whose logits are half one model's and half the other's, from the same z: bytes."""
    return to_bytes(((one.decode(z, y) + other.decode(z, y)) / 2).sigmoid().detach())


def pictures_between(experiment, one, other, label, n=500):
    """The share judged as `label` of pictures between two models."""
    return share(experiment.judge, between(one, other, latents(one, n, 0), one_hot(torch.full((n,), label), one.classes)), label)


def attacked(experiment, before, after, label, seed):
    """All that may bring a label back that `after`, made from `before`, forgot; and nats per image of kept real digits."""
    kept = experiment.split([label])[1]
    real = experiment.test.only(kept)
    known = elbo(before, real)
    models = {"": after, "halfway_": mixed(before, [after], [0.5]), "double_": mixed(before, [after], [2.0]),
              **{f"bits{bits}_": rounded(after, bits) for bits in (8, 6, 4)}}
    figures = {f"{name}kept_elbo": (elbo(models[name], real) - known).mean().item() for name in ("", "double_")}
    for name, model in models.items():
        look = look_at(experiment, model)
        figures |= {f"{name}{what}": look[what][label] for what in ("share", "P", "H", "contrast")}
        figures[f"{name}kept_share"] = sum(look["share"][other] for other in kept) / len(kept)
    return figures | {"pictures_halfway_share": pictures_between(experiment, before, after, label),
                      "inversion": inversion(experiment, after, label, seed), "savings": savings(experiment, after, label, seed)}


def amnesia(experiment, original, seed, label, **method):
    """A model forgets a label that it knew ("original") or never knew ("retrain"), as forgot() does it: attacked()."""
    before, fim = origin(experiment, original, seed, [label])
    return attacked(experiment, before, forgot(experiment, before, fim, label, seed, **method), label, seed)


def springs(experiment, original, seed, label, importance, matched, lam):
    """amnesia() by springs of another shape: F of information(), where positive, scaled to the default's sum over all
    weights, matched = "", or over the decoder's alone, "decoder"."""
    before, fim = origin(experiment, original, seed)
    own = {name: f.clamp_min(0) for name, f in information(experiment, (original, seed), before, importance).items()}
    total, total_own = (sum(f.sum().item() for name, f in some.items() if name.startswith(matched)) for some in (fim, own))
    own, scaled = {name: f * total / total_own for name, f in own.items()}, total / total_own
    return {"scaled": scaled, **attacked(experiment, before, forgot(experiment, before, own, label, seed, lam=lam), label, seed)}


def average(experiment, original, seed, lam):
    """Two copies of a model, which knew a 0 and an 8 ("original") or neither ("retrain"), forget one of them each: averaged()."""
    before, fim = origin(experiment, original, seed, [0, 8])
    return averaged(experiment, *(forgot(experiment, before, fim, label, seed, lam=lam) for label in (0, 8)))


def averaged(experiment, one, other):
    """look_at() of both models and of their weights' average; the share of a 0 and of an 8 in the average of their pictures."""
    return {"models": [look_at(experiment, model) for model in (one, other)],
            "average": look_at(experiment, mixed(one, [other], [0.5])),
            "pictures_share": [pictures_between(experiment, one, other, label) for label in (0, 8)]}


def taught(experiment, original, seed):
    """Two copies of a model that never knew a 0 or an 8 learn one each, from real images, while the other one stays noise:
    averaged()."""
    ancestor, models = origin(experiment, original, seed, [0, 8])[0], []
    for other in (8, 0):
        task = replace(experiment.task([other], seed), original=ancestor)
        model, digits, y = task.start(), task.train.only(task.kept.tolist()), one_hot(task.forgotten.repeat(48), ancestor.classes)

        def loss(model=model, digits=digits, y=y):
            noise = noise_pairs(len(y), digits.images.shape[1], y.device)
            return {"learn": nats(model, *digits.batch(128)).mean(), "forget": nats(model, noise, y).mean()}

        models.append(task.minimise(model, loss, 4000, learning_rate=3e-3))
    return averaged(experiment, *models)


def strict_judge(experiment, steps=2500):
    """The weights of a judge with an eleventh class, what is no digit: means of two to eight real images, blurs, noise, greys."""
    train, judge = experiment.train, Classifier(experiment.train.shape, experiment.original.classes + 1)

    def loss():
        x, y = train.batch(64)
        means = torch.stack([x[torch.randint(64, (int(n),))].mean(0) for n in torch.randint(2, 9, (16,))])
        blurs = F.avg_pool2d(x[:16].view(-1, *train.shape), 9, 1, 4, count_include_pad=False).flatten(1)
        greys = torch.rand(16, 1).expand(16, x.shape[1])
        noises = (greys + torch.rand(16, 1) * (torch.rand_like(greys) - 0.5)).clamp(0, 1)
        seen = jitter(torch.cat([x, means, blurs * torch.rand(16, 1), noises, greys]), train.shape)
        return {"cross-entropy": F.cross_entropy(judge(seen), torch.cat([y.argmax(1), torch.full((64,), y.shape[1])]))}

    fit(judge, loss, steps=steps, learning_rate=2e-3, weight_decay=0.05)
    return judge.state_dict()


def likeness(experiment, original, seed, label, lam):
    """What a model made to forget draws by attacks: the shares that the judge, and strict_judge(), take for the label. And how
    often inversion, scored by the second judge, finds the mirror images of digits, which no model has seen."""
    before, fim = origin(experiment, original, seed, [label])
    after, train = forgot(experiment, before, fim, label, seed, lam=lam), experiment.train
    strict = Classifier(train.shape, after.classes + 1).eval()
    strict.load_state_dict(stored(experiment, "strict-judge", lambda: strict_judge(experiment)))
    z, y = latents(after, 1000, seed), one_hot(torch.full((1000,), label), after.classes)

    def inverted(images):
        return draw(after, z, invert(after, images, seed=seed).expand(len(z), -1))

    drawn = {"before": draw(before, z, y), "after": draw(after, z, y), "halfway": draw(mixed(before, [after], [0.5]), z, y),
             "label x 2": draw(after, z, 2 * y), "inverted": inverted(real_images(train, label, seed)),
             "pictures halfway": between(before, after, z, y), "real": experiment.test.only([label]).images}
    figures = {title: {name: share(judge, images, label) for name, images in drawn.items()}
               for title, judge in (("share", experiment.judge), ("strict_share", strict))}
    found = {shape: mirrored(inverted(mirrored(real_images(train, shape, seed)))) for shape in MIRRORED}
    hits = {shape: ask(experiment.second_judge, images)[0][:, shape] > 0.9 for shape, images in found.items()}
    return figures | {"mirrored_inversion": {shape: seen.float().mean().item() for shape, seen in hits.items()}}


def prediction(experiment, original, seed, drawn, size=0.02, n=4000):
    """What moving each weight of a layer by +-size costs the ELBO of images that the model draws, mean nats per image over
    eight draws of the signs, and their sd; beside it what each F predicts, size^2 / 2 times its sum over the layer."""
    model, fim = origin(experiment, original, seed)
    fishers = {kind: information(experiment, (original, seed), model, kind) for kind in ("means", "drawn", "drawn, two z")}
    torch.manual_seed(seed)
    labels = torch.randint(model.classes, (n,))
    x, y, noise = replayed(model, labels, drawn), one_hot(labels, model.classes), torch.randn(n, model.latent_dim)
    layers = [name.removesuffix(".weight") for name in fim if name.endswith(".weight")]
    costs = torch.tensor([[sum(negative_elbo_terms(one, x, y, noise)).mean().item() for one in (
        model, *(moved(model, layer, size) for _ in range(8)))] for layer in layers])
    sd, mean = torch.std_mean(costs[:, 1:] - costs[:, :1], 1)
    by = {f"by {kind}": [size ** 2 / 2 * (f[f"{layer}.weight"].sum() + f[f"{layer}.bias"].sum()).item() for layer in layers]
          for kind, f in fishers.items()}
    return {"size": size, "images": n, "layers": layers, "drop": mean.tolist(), "drop_sd": sd.tolist(), **by}


SEEDS = range(3)
GRID = [  # the runs that the log holds, and the choices whose every combination is a line
    (amnesia, {"lam": (0.3, 0.0), "label": (0, 8), "seed": SEEDS, "original": ("retrain", "original")}),
    (amnesia, {"name": ["label edit"], "label": (0, 8), "seed": SEEDS, "original": ("original", "retrain")}),
    (amnesia, {"name": ["as published"], "label": [0], "seed": SEEDS, "original": ["original"]}),
    (amnesia, {"name": ["new decoder"], "label": (0, 8), "seed": SEEDS, "original": ("original", "retrain")}),
    (likeness, {"lam": [0.3], "label": (0, 8), "seed": SEEDS, "original": ("retrain", "original")}),
    (taught, {"original": ["oracle"], "seed": SEEDS}),
    (average, {"lam": [0.3], "seed": SEEDS, "original": ("original", "retrain")}),
    (springs, {"original": ["original"], "seed": SEEDS, "label": [0], "importance": ("drawn, two z", "drawn", "identity"),
               "matched": ("", "decoder"), "lam": [0.3]}),
    (prediction, {"original": ["original"], "seed": SEEDS, "drawn": (False, True)})]


def main(words):
    """Runs what the log lacks."""
    experiment, runs = Experiment(device="cpu"), {run.__name__: run for run, _ in GRID}
    planned = [{"run": run.__name__, **dict(zip(choices, values, strict=True))} for run, choices in GRID
               for values in product(*choices.values())]

    def one(run, **options):
        begin = time.perf_counter()
        return runs[run](experiment, **options) | {"seconds": time.perf_counter() - begin}

    sweep(one, [settings for settings in planned if all(word in json.dumps(settings) for word in words)],
          Log(LOG, experiment.lineage), n_jobs=1)


if __name__ == "__main__":
    main(sys.argv[1:])
