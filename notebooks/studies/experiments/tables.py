"""Tables of a study's records: choose some, take a figure of each, say its mean and spread."""

import math
import operator
import statistics

import torch

from amnesia.data import CLASSES
from amnesia.evaluation import wilson_interval

from .attacks import SEARCHES

# What a study's tables say of one record: {heading: figure(record)}. Bigger is better for the kept labels' figures but the
# Frechet distance; for the forgotten labels' bounds, smaller means more is forgotten.
FIGURES = {
    "P": lambda r: r["result"]["forgotten_probability"],
    "H": lambda r: r["result"]["entropy"],
    "forgetting accuracy": lambda r: 1 - share_judged(r, r["settings"]["forget"], same=True),
    "kept accuracy": lambda r: r["result"]["kept_accuracy"],
    "worst kept digit": lambda r: r["result"]["kept_accuracy_worst"],
    "leakage": lambda r: share_judged(r, [c for c in range(CLASSES) if c not in r["settings"]["forget"]],
                                      r["settings"]["forget"]),
    "Fréchet": lambda r: r["result"]["kept_frechet"],
    "precision": lambda r: r["result"]["precision"],
    "recall": lambda r: r["result"]["recall"],
    "kept ELBO": lambda r: r["result"]["kept_elbo"],
    "forgotten ELBO": lambda r: r["result"]["forgotten_elbo"]}
BOUNDS = {
    "kept bound": lambda r: r["result"]["kept_iw"],
    "forgotten bound": lambda r: r["result"]["forgotten_iw"],
    "decoder-only bound": lambda r: r["result"]["forgotten_refitted_iw"]}

# The same for one record of attacks.jsonl: success rates of attacks, and steps to learn the label again
RECOVERY = {
    "searches": lambda r: sum(success(r, attack) for attack in SEARCHES) / len(SEARCHES),
    "z alone": lambda r: success(r, SEARCHES[0]),
    "inversion, k = 100": lambda r: success(r, "inversion from 100 images"),
    "steps, k = 10": lambda r: r["result"]["relearning"]["10"],
    "steps, k = 100": lambda r: r["result"]["relearning"]["100"]}


def success(record, attack):
    """The share of an attack's attempts that succeeded."""
    attempts = record["result"]["attacks"][attack]
    return attempts["hits"] / attempts["n"]


def share_judged(record, asked, judged=(), same=False):
    """The share of samples asked for by the labels `asked` that were judged as one of `judged`, or as their own label."""
    confusion = torch.tensor(record["result"]["confusion"], dtype=torch.float64)[asked]      # (labels, 10) counts
    hits = confusion[range(len(asked)), asked] if same else confusion[:, list(judged)].sum(1)
    return (hits.sum() / confusion.sum()).item()


def excess_interval(ours, control):
    """(difference, [low, high]) of two shares, each given as (hits, n), by Newcombe's hybrid score (1998, method 10)."""
    (p, (low, high)), (q, (least, most)) = wilson_interval(*ours), wilson_interval(*control)
    return p - q, [p - q - math.hypot(p - low, most - q), p - q + math.hypot(high - p, q - least)]


def select(records, **settings):
    """The records of finished runs whose settings hold these values; None means that a setting must be absent."""
    return [record for record in records if "diverged" not in record["result"]
            and all(record["settings"].get(name) == value for name, value in settings.items())]


def paired(records, others, figure, by=operator.sub):
    """figure(record) minus (or by another operator) that of the one among `others` with the same forgotten labels and seed,
    for each record."""
    def pair(record):
        return str(record["settings"]["forget"]), record["settings"]["seed"]

    base = {pair(other): figure(other) for other in others}
    return [by(figure(record), base[pair(record)]) for record in records if pair(record) in base]


def spread(numbers, digits=3, sign=False):
    """'mean ± sd' of the numbers; without the spread if there is only one, and '–' if there is none."""
    if not numbers:
        return "–"
    text = f"{statistics.mean(numbers):{'+' if sign else ''}z.{digits}f}"                # z: no minus before a zero
    return f"{text} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else text


def markdown(header, rows):
    """A table in markdown."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows))
