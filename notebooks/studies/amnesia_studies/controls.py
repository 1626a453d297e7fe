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

from amnesia import ask, diagonal_fisher, elbo, negative_elbo_terms, one_hot
from amnesia.checkpoints import RELEASED

from .denoiser import latents, to_bytes
from .experiment import Experiment
from .logs import versions
from .methods import distilled, replayed, retrain, train_from_scratch
from .relearning import savings
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
    released one, if it is 0); or "retrain", trained from another seed without them."""
    if (kind, seed) == ("original", 0):
        return experiment.original, experiment.fim
    name = "-".join(map(str, (kind, seed, *(forget if kind == "retrain" else ()))))
    task = experiment.task(forget, seed + 100 if kind == "retrain" else seed)   # no initial weights that the original has
    task.original.load_state_dict(stored(experiment, name, lambda: (
        retrain(task) if kind == "retrain" else train_from_scratch(task, task.train)).state_dict()))
    return task.original, stored(experiment, f"{name}-fim", lambda: diagonal_fisher(task.original, 50_000), seed)


def forgot(experiment, model, fim, label, seed, lam):
    """What notebook 3 makes of a model, with springs of this F."""
    return distilled(replace(experiment.task([label], seed), original=model, fim=fim), lam)


def layers_of(fim):
    """The names of the layers whose weights and biases these are."""
    return [name.removesuffix(".weight") for name in fim if name.endswith(".weight")]


def information(model, kind, n=20_000, batch_size=500):
    """F of mean images, "means", as in notebook 2; of "drawn" pixels; or "drawn, two z", with the product of an image's
    gradients by two z in the place of a square: it does not count the noise of z, and may be negative."""
    images = partial(replayed, model, drawn=kind != "means")
    if kind != "drawn, two z":
        return diagonal_fisher(model, n, batch_size, images=images)
    total, hooked, calls = {name: torch.zeros_like(p) for name, p in model.named_parameters()}, deepcopy(model), []
    for layer in layers_of(total):
        hooked.get_submodule(layer).register_forward_hook(lambda _, args, output: calls.append((args[0].detach(), output)))
    for _ in range(0, n, batch_size):
        calls.clear()
        labels = torch.randint(model.classes, (batch_size,))
        x, y, noise = images(labels), one_hot(labels, model.classes), torch.randn(2 * batch_size, model.latent_dim)
        costs = sum(negative_elbo_terms(hooked, x.repeat(2, 1), y.repeat(2, 1), noise))
        deltas = torch.autograd.grad(costs.sum(), [output for _, output in calls])
        for layer, (a, _), delta in zip(layers_of(total), calls, deltas, strict=True):  # as in fisher.squared_gradients()
            a, delta = (values.unflatten(0, (2, -1)).prod(0) for values in (a, delta))
            total[f"{layer}.weight"] += delta.T @ a / n
            total[f"{layer}.bias"] += delta.sum(0) / n
    return total


def stiffness(experiment, original, seed, model, kind):
    """information(), kept in the workspace under the model's name."""
    return stored(experiment, f"{original}-{seed}-F-{kind.replace(' ', '')}", lambda: information(model, kind))


def moved(model, layer, size):
    """A copy with each weight and bias of a layer moved by size, up or down at random."""
    model = deepcopy(model)
    for p in model.get_submodule(layer).parameters():
        p.data += size * (2 * torch.randint(2, p.shape) - 1)
    return model


def pictures_between(experiment, one, other, label, n=500):
    """The share judged as `label` of pictures whose logits are half one model's and half the other's, from the same z."""
    z, y = latents(one, n, 0), one_hot(torch.full((n,), label), one.classes)
    images = to_bytes(((one.decode(z, y) + other.decode(z, y)) / 2).sigmoid())
    return (ask(experiment.judge, images)[0].argmax(1) == label).float().mean().item()


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
    figures["pictures_halfway_share"] = pictures_between(experiment, before, after, label)
    figures["inversion"] = inversion(experiment, after, label, seed)["hits"] / 1000
    for k, steps in savings(experiment, after, label, seed).items():
        others = list(steps["mirrored"].values())
        figures |= {f"digit_{k}": steps["digit"], f"mirrored_{k}": others,
                    f"savings_{k}": steps["digit"] * len(others) / sum(others)}
    return figures


def amnesia(experiment, original, seed, label, lam):
    """A model forgets a label that it knew ("original") or never knew ("retrain"): attacked()."""
    before, fim = origin(experiment, original, seed, [label])
    return attacked(experiment, before, forgot(experiment, before, fim, label, seed, lam), label, seed)


def springs(experiment, original, seed, label, importance, matched, lam):
    """amnesia() by springs of another shape: F of information(), where positive, scaled to the default's sum over all
    weights, matched = "", or over the decoder's alone, "decoder"."""
    before, fim = origin(experiment, original, seed)
    own = {name: f.clamp_min(0) for name, f in stiffness(experiment, original, seed, before, importance).items()}
    total, total_own = (sum(f.sum().item() for name, f in some.items() if name.startswith(matched)) for some in (fim, own))
    own, scaled = {name: f * total / total_own for name, f in own.items()}, total / total_own
    return {"scaled": scaled, **attacked(experiment, before, forgot(experiment, before, own, label, seed, lam), label, seed)}


def average(experiment, original, seed, lam):
    """Two copies of a model, which knew a 0 and an 8 ("original") or neither ("retrain"), forget one of them each: look_at()
    both and their weights' average; and the share of a 0 and of an 8 in the average of their pictures."""
    before, fim = origin(experiment, original, seed, [0, 8])
    one, other = (forgot(experiment, before, fim, label, seed, lam) for label in (0, 8))
    return {"models": [look_at(experiment, model) for model in (one, other)],
            "average": look_at(experiment, mixed(one, [other], [0.5])),
            "pictures_share": [pictures_between(experiment, one, other, label) for label in (0, 8)]}


def prediction(experiment, original, seed, drawn, size=0.02, n=4000):
    """What moving each weight of a layer by +-size costs the ELBO of images that the model draws, mean nats per image over
    eight draws of the signs, and their sd; beside it what each F predicts, size^2 / 2 times its sum over the layer."""
    model, fim = origin(experiment, original, seed)
    fishers = {kind: stiffness(experiment, original, seed, model, kind) for kind in ("means", "drawn", "drawn, two z")}
    torch.manual_seed(seed)
    labels = torch.randint(model.classes, (n,))
    x, y, noise = replayed(model, labels, drawn), one_hot(labels, model.classes), torch.randn(n, model.latent_dim)
    layers = layers_of(fim)
    costs = torch.tensor([[sum(negative_elbo_terms(one, x, y, noise)).mean().item() for one in (
        model, *(moved(model, layer, size) for _ in range(8)))] for layer in layers])
    sd, mean = torch.std_mean(costs[:, 1:] - costs[:, :1], 1)
    by = {f"by {kind}": [size ** 2 / 2 * (f[f"{layer}.weight"].sum() + f[f"{layer}.bias"].sum()).item() for layer in layers]
          for kind, f in fishers.items()}
    return {"size": size, "images": n, "layers": layers, "drop": mean.tolist(), "drop_sd": sd.tolist(), **by}


GRID = {  # the settings of all lines, in the order of their weight
    amnesia: {"lam": (0.3, 0.0), "label": (0, 8), "seed": range(3), "original": ("retrain", "original")},
    prediction: {"original": ["original"], "seed": range(3), "drawn": (False, True)},
    springs: {"original": ["original"], "seed": range(3), "label": [0], "importance": ("drawn, two z", "drawn"),
              "matched": ("", "decoder"), "lam": [0.3]},
    average: {"lam": [0.3], "seed": range(3), "original": ("original", "retrain")}}


def main(words):
    """Runs what the log lacks."""
    experiment, lines = Experiment(device="cpu"), [json.loads(line) for line in LOG.read_text().splitlines()]
    planned = [(run, dict(zip(choices, values, strict=True))) for run, choices in GRID.items()
               for values in product(*choices.values())]
    for run, options in planned:
        line, begin = {"run": run.__name__, **options}, time.perf_counter()
        if all(word in json.dumps(line) for word in words) and not any(line.items() <= old.items() for old in lines):
            figures = run(experiment, **options) | {"seconds": time.perf_counter() - begin}
            figures = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 4))
            with LOG.open("a") as file:
                file.write(json.dumps(line | figures | versions() | {"lineage": experiment.lineage}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
