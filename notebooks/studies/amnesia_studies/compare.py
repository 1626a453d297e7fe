"""Bring your own method: its row in the table of every method, with a receipt. Make any row of ours again. And where a
figure comes from."""

import inspect
import re
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
TAKEN = {*METHODS, "references", "flat grey"}


def compare(method, forget=(0,), seeds=(1, 2, 3), experiment=None, name="", scale=1.0, n_jobs=-1):
    """The table of every method that has forgotten these labels, in markdown, with a row for yours: mean ± sd over seeds.

    method: a function of a Task (methods.py) that returns a new model; name: what to call it, if it has no name of its own.
    It is run, scored and attacked for each seed, on the original of `experiment` (by default, Experiment()), and so are that
    original, retrain and oracle, unless the released runs start from the same files. Each run is a line of
    <workspace>/checkpoints/rows/<name>.jsonl, with settings, the source of the method, lineage and versions: what was cut
    off goes on, what is there is not run again, and an edited method makes other lines. Seed 0 is the original's own, from
    whose initial weights a reference of that seed would start.
    scale: the share of the steps, of your method and of the attacks; a small one shows that it runs.
    Raises ValueError for a name that is taken, TypeError for a method that has none or returns something else, and what the
    method raises, all of it within a trial of one step.
    """
    name, source, digest = receipt(method, name)
    experiment = experiment or Experiment()
    forget, _ = experiment.split(forget)
    experiment.forget(method, forget, seeds[0], scale=0.0)
    (experiment.store.checkpoints / "rows").mkdir(exist_ok=True)
    more = {"grey": experiment.grey(forget)}
    settings = {"forget": forget, "scale": scale, "method": name, "source": digest}
    own = experiment.run([settings | {"seed": seed} for seed in seeds], f"rows/{name}", n_jobs, method, source=source, **more)
    known = released()[released()["label"] == ", ".join(map(str, forget))]
    same = known[known["record"].map(lambda record: experiment.lineage.items() <= record["lineage"].items()).astype(bool)]
    missing = [row for row in REFERENCES if row not in of(same, "inversion from 100 images")["name"].values]
    beside = [experiment.run([{"method": row, "forget": forget, "scale": scale, "seed": seed} for seed in seeds],
                             "rows/references", n_jobs, **more) for row in missing]
    others = known[(known["original"] == own["original"][0]) & known["name"].isin({*METHODS} - {*missing})]
    lines = summary(pd.concat([others, *beside, own]), COLUMNS).astype(object)
    lines.loc["flat grey"] = ["–", "+0.000", "1.000", *["–"] * (len(COLUMNS) - 2)]
    notes = [f"{name} ran for {scale:g} of its steps, and so did its attacks: its row is no result yet."] * (scale != 1)
    notes += ["The released rows do not start from your files, but from the released ones."] * (len(same) < len(others))
    return "\n\n".join([markdown(lines), *notes])


def receipt(method, name=""):
    """(name, source, SHA-256 of it and of the notebook's functions that it calls) of a method. Raises ValueError for a name
    that is taken; TypeError for what is no function, or has no name fit for a file."""
    name = name or getattr(method, "__name__", "<none>")
    if not inspect.isfunction(method) or not re.fullmatch(r"\w[\w -]*", name):
        raise TypeError(f"{method!r} is no function with a name fit for a file: def mine(task), or compare(…, name=\"mine\").")
    if name in TAKEN:
        raise ValueError(f"name={name!r} is taken by a method of the studies: choose another.")
    source = inspect.getsource(method)
    return name, source, sha256(source + repr(code_of(method)))


def board(folder):
    """A page in markdown from all row files in a folder, anybody's: a line for each method, source, original and labels."""
    runs = [table(Log(path).records().values(), path.stem) for path in sorted(Path(folder).glob("*.jsonl"))]
    if not runs:
        raise ValueError(f"There is no row file in {folder}: compare() writes them into <workspace>/checkpoints/rows.")
    runs = pd.concat(runs, ignore_index=True)
    runs["original"] = [next(iter(record["lineage"].values()))[:8] for record in runs["record"]]
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
        raise ValueError(f"This row starts from another {', '.join(other)}, which was not released: pass the experiment of "
                         "the workspace that holds these files.")
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
    versions = {str(record["versions"]): record["versions"] for record in runs["record"]}
    return {"value": runs[figure].mean(), "sd": runs[figure].std(), "n": len(runs), "seeds": runs["seed"].tolist(),
            "lines": [f"{folder}{log}.jsonl:{line}" for log, line in zip(runs["log"], runs["line"], strict=True)],
            "settings": runs["settings"].tolist(), "files": runs["record"].iloc[0]["lineage"],
            "versions": list(versions.values())}
