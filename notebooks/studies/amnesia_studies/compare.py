"""Bring your own method: its row in the table of every method, with a receipt. Make any row of ours again. And where a
figure comes from."""

import inspect
from pathlib import Path

import pandas as pd

from amnesia.checkpoints import sha256
from amnesia.stages import code_of

from .experiment import DiffusionExperiment, Experiment
from .logs import Log
from .methods import METHODS
from .tables import controls, markdown, of, released, summary, table

COLUMNS = {"P − grey": "+.3f", "H / grey": ".3f", "kept accuracy": ".4f", "worst kept digit": ".3f", "kept ELBO": ".2f",
           "Fréchet": ".1f", "recall": ".3f", "inversion from 100 images": ".2f", "savings, k = 10": ".2f", "seconds": ".1f"}
REFERENCES = "original", "retrain", "oracle"
TAKEN = {*METHODS, "references", "<lambda>"}


def compare(method, forget=(0,), seeds=(1, 2, 3), experiment=None, scale=1.0, n_jobs=-1):
    """The table of every method that has forgotten these labels, in markdown, with a row for yours: mean ± sd over seeds.

    method: a function of a Task (methods.py) that returns a new model. It is run, scored and attacked for each seed, on the
    original of `experiment` (by default, Experiment()). The other rows are the released runs that start from the same files;
    original, retrain and oracle are run as well where they are not among these. Each run is a line of
    <workspace>/checkpoints/rows/<name of the function>.jsonl, with settings, the source of the method, lineage and versions:
    what was cut off goes on, what is there is not run again, and an edited method makes other lines. Seed 0 is the original's
    own, from whose initial weights a reference of that seed would start.
    scale: the share of the steps, of your method and of the attacks; a small one shows that it runs.
    Raises ValueError for a name that is taken, TypeError for a method that returns something else, and what the method
    raises, all of it within a trial of one step.
    """
    name, source, digest = receipt(method)
    experiment = experiment or Experiment()
    forget, _ = experiment.split(forget)
    experiment.forget(method, forget, seeds[0], scale=0.0)
    (experiment.store.checkpoints / "rows").mkdir(exist_ok=True)
    grid, grey = [{"forget": forget, "scale": scale, "seed": seed} for seed in seeds], experiment.grey(forget)
    own = experiment.run([one | {"method": name, "source": digest} for one in grid], f"rows/{name}", n_jobs, method,
                         source=source, grey=grey)
    known = released().query("label == @own['label'][0] and name in @METHODS")
    known = known.loc[[experiment.lineage.items() <= record["lineage"].items() for record in known["record"]]]
    missing = [row for row in REFERENCES if row not in of(known, "inversion from 100 images")["name"].values]
    beside = [experiment.run([one | {"method": row} for one in grid], "rows/references", n_jobs, grey=grey) for row in missing]
    return markdown(summary(pd.concat([known[~known["name"].isin(missing)], *beside, own]), COLUMNS))


def receipt(method):
    """(name, source, SHA-256 of it and of the notebook's functions that it calls) of a function. Raises ValueError for a name
    that is taken, or none."""
    name = method.__name__
    if name in TAKEN:
        raise ValueError(f"{name!r} is taken by the studies, or no name: call your method something else, def mine(task).")
    source = inspect.getsource(method)
    return name, source, sha256(source + repr(code_of(method)))


def board(folder):
    """A page in markdown from all row files in a folder, anybody's: a line for each method, source, original and labels."""
    records = [record for path in sorted(Path(folder).glob("*.jsonl")) for record in Log(path).records().values()]
    if not records:
        raise ValueError(f"There is no row in {folder}: compare() writes them into <workspace>/checkpoints/rows.")
    runs = table(records)
    runs["original"] = [next(iter(record["lineage"].values()))[:8] for record in records]
    runs["name"] += [f" ({settings['source'][:8]})" if "source" in settings else "" for settings in runs["settings"]]
    return markdown(summary(runs, COLUMNS, ["name", "original", "label"]))


def rebuild(row, experiment=None):
    """Makes a released row again, or anybody's whose method is ours: a DataFrame with a line for each figure: "released",
    "again", and whether it is "within" the tolerance, which is 5 % or 0.05, of steps and savings 50 %; seconds have none.

    row: a line of released(), as released().loc[7]. Raises ValueError for one that starts from other files than the
    experiment, by default that of the released ones.
    """
    experiment = experiment or (DiffusionExperiment if row["original"] == "diffusion" else Experiment)()
    other = [name for name, digest in experiment.lineage.items() if row["record"]["lineage"].get(name) != digest]
    if other:
        raise ValueError(f"This row starts from another {', '.join(other)}: pass the experiment of a workspace that holds it.")
    again = experiment.run([row["settings"]], row["log"], n_jobs=1)
    again = again[again["label"] == row["label"]].iloc[-1]
    measured = row.index[row.index.get_loc("record") + 1:]
    lines = pd.DataFrame({"released": row[measured], "again": again.reindex(measured)}).dropna().astype(float)
    part = [0.5 if name.startswith(("steps", "mirrored", "savings")) else 0.05 for name in lines.index]
    near = (lines["released"] - lines["again"]).abs() <= part * lines["released"].abs().clip(lower=1)
    return lines.assign(within=near | lines.index.str.startswith("seconds"))


def address(method, label, figure, original="MNIST"):
    """Where a figure of the released runs comes from: its "value" (the mean), "sd", "n", "seeds", "lines" (file:line of each
    run's log), "settings", the "files" that the runs start from with their SHA-256, and "versions" that made them.

    method: a name of the table, as "distilled amnesia, λ = 0"; label: the forgotten one, or several as "3, 8"; figure: a
    heading; original: "MNIST", "FashionMNIST", "5,000 digits", "diffusion", or "controls", of controls(). Raises ValueError if
    there is none.
    """
    runs = controls() if original == "controls" else released()
    runs = runs[(runs["original"] == original) & (runs["name"] == method) & (runs["label"] == str(label))]
    runs = of(runs, figure).sort_values("seed") if figure in runs else runs[:0]
    if runs.empty:
        raise ValueError(f"{figure!r} was not measured of {method}, label {label}: released() has all names and headings.")
    folder = "checkpoints/released/" + ("FashionMNIST/" if original == "FashionMNIST" else "")
    return {"value": runs[figure].mean(), "sd": runs[figure].std(), "n": len(runs), "seeds": runs["seed"].tolist(),
            "lines": [f"{folder}{log}.jsonl:{line}" for log, line in zip(runs["log"], runs["line"], strict=True)],
            "settings": runs["settings"].tolist(), "files": runs["record"].iloc[0]["lineage"],
            "versions": runs["record"].str["versions"].astype(str).unique().tolist()}
