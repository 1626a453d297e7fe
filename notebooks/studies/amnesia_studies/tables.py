"""One table of all runs, a line each, in plain pandas; and what a figure of it is called, and where it comes from."""

import json
from functools import cache
from inspect import signature

import numpy as np
import pandas as pd

from amnesia.checkpoints import RELEASED

from .logs import Log
from .methods import METHODS, OF_DENOISERS

RUN = ["original", "name", "label", "seed"]      # what tells a run from others; two logs may hold the same one
SHARES = ["kept accuracy", "worst kept digit"]   # whose changes are told in points
# {heading: an entry of a result}
ENTRIES = {"P": "forgotten_probability", "H": "entropy", "kept accuracy": "kept_accuracy",
           "worst kept digit": "kept_accuracy_worst", "Fréchet": "kept_frechet", "recall": "recall", "kept ELBO": "kept_elbo",
           "forgotten ELBO": "forgotten_elbo", "contrast": "forgotten_contrast", "seconds": "seconds",
           "kept bound": "kept_iw", "forgotten bound": "forgotten_iw", "decoder-only bound": "forgotten_refitted_iw"}
NO_OPTIONS = "method", "forget", "seed", "bounds", "restarts", "source"   # settings that no name tells
# Words in the settings of grids that no finding quotes, whose code is gone: those lines stay in the logs only
GONE = "rank", "reach", "prior", "batch-mean", "unconditional", "seeds_apart"

# {heading: an entry of a line of controls.jsonl}
CONTROLS = {"0.5 of the way": "halfway_share", "pictures mixed": "pictures_halfway_share", "8 bits": "bits8_share",
            "8 bits, H": "bits8_H", "6 bits, H": "bits6_H"}


def figures(result, forget, grey=(np.nan, np.nan)):
    """{heading: value} of one run, from its result: whatever a table may show. A new figure goes here.

    grey: what the judge says of flat grey, as (P, H) of these labels. Bigger is better for the kept labels' figures but the
    Frechet distance; for the forgotten labels' bounds, smaller means more is forgotten. Of altered weights: the share of
    samples of the first label that show it, or of each label of a mixture; with ", H", ", contrast" the judge's other
    figures, with ", kept" the others' share, with ", P(0)" one label's P.
    """
    values = {name: result[entry] for name, entry in ENTRIES.items() if entry in result}
    if "P" in values:
        values |= {"P − grey": values["P"] - grey[0], "H / grey": values["H"] / grey[1]}
    attacks = {"inversion from 100 images": result.get("inversion", {}), "one label": result, **result.get("attacks", {})}
    values |= {name: found["hits"] / found["n"] for name, found in attacks.items() if "hits" in found}
    if "unconditional" in result:
        values["drawn without a label"] = result["unconditional"][min(forget)] / sum(result["unconditional"])
    for k, steps in result.get("savings", {}).items():
        mirrored = np.mean(list(steps["mirrored"].values()))
        values |= {f"steps, k = {k}": steps["digit"], f"mirrored, k = {k}": mirrored,
                   f"savings, k = {k}": steps["digit"] / mirrored}
    labels, looks = forget[:1], {f"{share} of the way": look for share, look in result.get("line", {}).items()}
    looks |= {f"{bits} bits": look for bits, look in result.get("rounded", {}).items()}
    if "average" in result:
        sums = {f"sum × {scale}": look for scale, look in result["sums"].items()}
        labels, looks = sorted(forget), {"average": result["average"], **sums}
    for name, look in looks.items():
        look = pd.DataFrame(look)                           # a line a label
        asked = look.loc[labels].mean()
        values |= {name: asked["share"], f"{name}, kept": look["share"].drop(labels).mean(), f"{name}, H": asked["H"],
                   f"{name}, contrast": asked["contrast"], **{f"{name}, P({label})": look["P"][label] for label in labels}}
    return values


def table(records, log="", original="", grey=lambda forget: (np.nan, np.nan)):
    """A DataFrame with a line for each of these records, in order, and for each round of one that forgets label after label.

    Its columns: "log", "line" (where the record lies); "original"; "method"; "lam" (λ, also where it is the method's own);
    "label" (the forgotten ones, as "3, 8"); "seed"; "name" (the method and those options that are not its own);
    "settings" (a dict, which runs it again); "record"; and what figures() says, NaN where a run did not measure it.
    """
    methods, lines = OF_DENOISERS if original == "diffusion" else METHODS, []
    for record in records:
        settings, result = record["settings"], record["result"]
        method = settings.get("method", "in turn")
        parameters = signature(methods[method]).parameters.values() if method in methods else ()
        own = {"scale": 1.0, **{p.name: p.default for p in parameters}}
        options = [f"{name.replace('lam', 'λ')} = {value}".removesuffix(".0") for name, value in settings.items()
                   if name not in NO_OPTIONS and own.get(name) != value]
        rounds = result.get("rounds", [result])
        for last, one in enumerate(rounds, 1 + len(settings["forget"]) - len(rounds)):
            forget = settings["forget"][:last]
            lines.append({"log": log, "line": record["line"], "original": original, "method": method,
                          "lam": (own | settings).get("lam", np.nan), "label": ", ".join(map(str, forget)),
                          "seed": settings["seed"], "name": ", ".join([method, *sorted(options, reverse=True)]),
                          "settings": settings, "record": record,
                          **figures(one, forget, record.get("grey") or grey(forget))})
    return pd.DataFrame(lines)


@cache
def released():
    """The table() of all released logs, but for GONE; P and H against flat grey, but for clothes, whose judge is another."""
    evaluations = [json.loads((RELEASED / f"evaluation-{label}.json").read_text()) for label in range(10)]

    def grey(forget):
        seen = [evaluations[label]["reference"]["grey"] for label in forget]
        return np.mean([one["forgotten_probability"] for one in seen]), seen[0]["entropy"]

    tables = []
    for path in sorted(RELEASED.rglob("*.jsonl"), key=lambda path: (path.parent != RELEASED, path.stem != "studies", path)):
        original = {"springs-5000": "5,000 digits"}.get(path.stem, "diffusion" if path.stem.startswith("diffusion") else
                                                         "MNIST" if path.parent == RELEASED else path.parent.name)
        records = [record for settings, record in Log(path).records().items() if not any(word in settings for word in GONE)
                   and ("method" in settings or path.stem == "studies")]
        tables.append(table(records, path.stem, original, *[grey] * (path.parent == RELEASED)))
    return pd.concat(tables, ignore_index=True).copy()  # in one piece, or pandas warns of fragments


@cache
def controls():
    """The lines of controls.jsonl as a table(): amnesia of models that "knew" the label and of models that "never knew" it, each
    seed from another original; by notebook 3's method and λ, or another one that is named, and with F of mean images, or what
    is named ("decoder": scaled to the default's sum there). kept ELBO is a change there. Two such models are "averaged", after
    amnesia or "taught" a label each; of single lines also what the strict judge sees, and mirror images under inversion."""
    lines = []
    for record in Log(RELEASED / "controls.jsonl").records().values():
        settings, result = record["settings"], record["result"]
        run, label, values = settings["run"], settings.get("label"), {}
        if run == "prediction":
            continue
        if "average" in result:
            share, (of_0, of_8) = result["average"]["share"], result["pictures_share"]
            values = {"average, 0": share[0], "average, 8": share[8], "pictures mixed, 0": of_0, "pictures mixed, 8": of_8}
        elif run == "likeness":
            values = {"strict judge, half-way": result["strict_share"]["halfway"],
                      "strict judge, inverted": result["strict_share"]["inverted"],
                      "mirror images inverted": np.mean([*result["mirrored_inversion"].values()])}
        else:
            values = figures(result, [label]) | {heading: result[entry] for heading, entry in CONTROLS.items()}
        name = ["knew" if settings["original"] == "original" else "never knew", settings.get("name"),
                f"λ = {settings['lam']:g}" if settings.get("lam", 0.3) != 0.3 else "",
                f"{settings['steps']:,} steps" if "steps" in settings else "",
                f"F {settings['importance']}" if "importance" in settings else "", settings.get("matched"),
                {"average": "averaged", "taught": "taught, averaged"}.get(run)]
        lines.append({"log": "controls", "line": record["line"], "original": "controls", "seed": settings["seed"],
                      "label": "0, 8" if label is None else str(label), "name": ", ".join(filter(None, name)),
                      "settings": settings, "record": record, **values})
    return pd.DataFrame(lines)


def of(runs, figure):
    """The runs that measured a figure, each once: of a run that two logs hold, the first line counts."""
    return runs.dropna(subset=figure).drop_duplicates(RUN)


def less(runs, control, on=("original", "label", "seed")):
    """The runs with each figure less that of the runs named `control` with the same labels and seed, or else with what `on`
    names, their mean; shares in points. P and H stay as they are: they stand against grey already."""
    columns = [name for name in runs.columns[runs.columns.get_loc("record") + 1:] if not name.startswith(("P", "H"))]
    controls = runs[runs["name"] == control].groupby(RUN)[columns].first()           # a line a run, whatever logs hold it
    partners = controls.groupby(level=[*on]).mean().reindex(pd.MultiIndex.from_frame(runs[[*on]]))
    points = [100 if name in SHARES else 1 for name in columns]
    return runs.assign(**(runs[columns] - partners.set_axis(runs.index)) * points).copy()      # in one piece, as released() is


def summary(runs, columns, by="name"):
    """A table of texts: a line for each value of the column (or columns) `by`, in order, with n and the mean ± sd of each
    column of {heading: format as "+.3f"}; a run that two logs hold counts once."""
    by, runs = [by] if isinstance(by, str) else [*by], runs.reindex(columns=runs.columns.union(columns, sort=False))
    once = runs.groupby([*dict.fromkeys(RUN + by)], sort=False)[[*columns]].first()
    groups = once.groupby(by, sort=False)
    lines = pd.DataFrame({name: groups[name].agg(spread, form) for name, form in columns.items()})
    lines.insert(0, "n", groups.count().max(axis=1))
    return lines[lines["n"] > 0]


def spread(numbers, form):
    """'mean ± sd' of the numbers that there are; without the spread if there is only one, and "–" if there is none."""
    numbers = numbers.dropna()
    text = f"{numbers.mean():{form.replace('.', 'z.')}}" if len(numbers) else "–"           # z: no minus before a zero
    return f"{text} ± {numbers.std():{form.removeprefix('+')}}" if len(numbers) > 1 else text


def markdown(table):
    """A DataFrame in markdown, its index as the first columns."""
    table = table.reset_index()
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
