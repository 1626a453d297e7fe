"""Bring your own method: its row in the table of every method."""

import tempfile
from functools import partial
from pathlib import Path

import pandas as pd

from .experiment import released
from .recovery import forget_and_recover
from .rows import EVERY_METHOD, OTHER_SEEDS, plan
from .sweep import Log, sweep
from .tables import frame, markdown, relearning_metrics, summary

COLUMNS = {"P − grey": "+.3f", "H / grey": ".3f", "kept accuracy": ".4f", "worst kept digit": ".3f", "kept ELBO": ".2f",
           "Fréchet": ".1f", "recall": ".3f", "inversion from 100 images": ".2f", "savings, k = 10": ".2f", "seconds": ".1f"}


def compare(method, experiment, seeds=(0, 1, 2), scale=1.0, n_jobs=-1):
    """The table of every method that has forgotten the digit 0, in markdown, with a row for yours: mean ± sd over seeds.

    method: a function of a Task (methods/task.py) that returns a new CVAE. It is run, scored and attacked for each of
    `seeds`, from the files of `experiment`, an Experiment with MNIST; the other rows are the released runs. Flat grey is
    what a decoder draws that knows nothing of its label.
    scale: the share of the steps, of your method and of the attacks; a small one shows that it runs. Nothing is saved.
    Raises ValueError for another data set, TypeError for a method that returns something else, and what the method raises.
    """
    if experiment.store.dataset != "MNIST":
        raise ValueError(f"dataset={experiment.store.dataset!r}: the released runs of all methods are of MNIST.")
    lineage, name = experiment.log("attacks").lineage, method.__name__
    runs = {name: [{"forget": [0], "seed": seed, "scale": scale, "restarts": max(2, round(128 * scale))} for seed in seeds]}
    with tempfile.TemporaryDirectory() as folder:
        run, log = partial(forget_and_recover, experiment, method), Log(Path(folder) / "log", lineage)
        records = sweep(run, runs[name], log, n_jobs, title=name)
    attacks = released("attacks")
    others = frame(released("studies"), plan(EVERY_METHOD, [[0]], range(3), bounds=True), experiment.grey)
    attacked = frame(attacks, plan(EVERY_METHOD, [[0]], range(3), restarts=128))         # not every method was
    others = others.join(attacked["inversion from 100 images"])
    taught = frame(released("savings"), plan(EVERY_METHOD, [[0]], OTHER_SEEDS), of=relearning_metrics)
    table = summary(pd.concat([others, frame(records, runs, experiment.grey)]), COLUMNS).astype(object)
    table.update(summary(taught, {"savings, k = 10": COLUMNS["savings, k = 10"]}).drop(columns="n"))
    table.loc["flat grey"] = ["–", "+0.000", "1.000", *["–"] * (len(COLUMNS) - 2)]

    notes = []
    if scale != 1:
        notes.append(f"{name} ran for {scale:g} of its steps, and so did its attacks: its row is no result yet.")
    different = [file for file, digest in lineage.items() if attacks[0]["lineage"].get(file) != digest]
    if different:
        notes.append(f"The other rows do not start from your {', '.join(different)}, but from the released run's files.")
    return "\n\n".join([markdown(table), *notes])
