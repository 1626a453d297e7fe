"""One table of all runs, a line each, in plain pandas; and what a figure of it is called, and where it comes from."""

import json
from functools import cache
from inspect import signature

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from amnesia.checkpoints import RELEASED

from .attacks import SEARCHES
from .logs import Log
from .methods import METHODS, OF_DENOISERS

RUN = ["original", "name", "label", "seed"]      # what tells a run from others; two logs may hold the same one
SHARES = ["forgetting accuracy", "kept accuracy", "worst kept digit", "leakage"]  # whose changes are told in points
# {heading: an entry of a result}
ENTRIES = {"P": "forgotten_probability", "H": "entropy", "kept accuracy": "kept_accuracy",
           "worst kept digit": "kept_accuracy_worst", "Fréchet": "kept_frechet", "precision": "precision", "recall": "recall",
           "kept ELBO": "kept_elbo", "forgotten ELBO": "forgotten_elbo", "contrast": "forgotten_contrast",
           "seconds": "seconds", "kept bound": "kept_iw", "forgotten bound": "forgotten_iw",
           "decoder-only bound": "forgotten_refitted_iw"}
NO_OPTIONS = "method", "forget", "seed", "bounds", "restarts", "source"   # settings that no name tells


def look_figures(looks, labels):
    """{heading: value} of {name: what look_at() said of a model}: the share of samples of these labels that show them; and
    with ", P", ", H", ", contrast" the judge's other figures, with ", kept" the others' share, with ", P(0)" one label's."""
    values = {}
    for name, look in looks.items():
        others = sorted(set(range(len(look["P"]))) - set(labels))
        values |= {name: np.mean([look["share"][label] for label in labels]),
                   f"{name}, kept": np.mean([look["share"][label] for label in others]) if others else np.nan}
        values |= {f"{name}, {what}": np.mean([look[what][label] for label in labels]) for what in ("P", "H", "contrast")}
        values |= {f"{name}, P({label})": look["P"][label] for label in labels}
    return values


def figures(result, forget, grey=(np.nan, np.nan)):
    """{heading: value} of one run, from its result: whatever a table may show. A new figure goes here.

    grey: what the judge says of flat grey, as (P, H) of these labels. Bigger is better for the kept labels' figures but the
    Frechet distance; for the forgotten labels' bounds, smaller means more is forgotten.
    """
    forgotten, values = sorted(forget), {name: result[entry] for name, entry in ENTRIES.items() if entry in result}
    if "confusion" in result:
        confusion = np.array(result["confusion"])               # (label asked for, label judged), counts
        kept = [label for label in range(len(confusion)) if label not in forgotten]
        values |= {"P − grey": values["P"] - grey[0], "H / grey": values["H"] / grey[1],
                   "forgetting accuracy": 1 - confusion[forgotten, forgotten].sum() / confusion[forgotten].sum(),
                   "leakage": confusion[kept][:, forgotten].sum() / confusion[kept].sum()}
    attacks = result.get("attacks", {}) | {name: found for name, found in (
        ("inversion from 100 images", result.get("inversion")), ("one label", "hits" in result and result)) if found}
    values |= {name: found["hits"] / found["n"] for name, found in attacks.items()}
    if "resurgence" in result:
        values["searches"] = np.mean([values[attack] for attack in SEARCHES])
        after = figures(result["resurgence"], forget, grey)
        values |= {f"{name}, fine-tuned": value for name, value in after.items()}
    if "unconditional" in result:
        values["drawn without a label"] = result["unconditional"][forgotten[0]] / sum(result["unconditional"])
    for k, steps in result.get("savings", {}).items():
        mirrored = np.mean(list(steps["mirrored"].values()))
        values |= {f"steps, k = {k}": steps["digit"], f"mirrored, k = {k}": mirrored,
                   f"savings, k = {k}": steps["digit"] / mirrored}
    looks = {name: result[name] for name in ("average", "turned") if name in result} | result.get("exchanged", {})
    looks |= {f"sum × {scale}": look for scale, look in result.get("sums", {}).items()}
    looks |= {f"{bits} bits": look for bits, look in result.get("rounded", {}).items()}
    along = {} if "average" in result else result.get("line", {}) | result.get("path", {})
    looks |= {f"{share} of the way": look for share, look in along.items()}
    return values | look_figures(looks, forgotten if "average" in result else forget[:1])


def table(records, log="", original="", grey=lambda forget: (np.nan, np.nan)):
    """A DataFrame with a line for each of these records, in order, and for each round of one that forgets label after label.

    Its columns: "log", "line" (where the record lies); "original"; "method"; "lam" (λ, also where it is the method's own);
    "label" (the forgotten ones, as "3, 8"); "seed"; "name" (the method and those options that are not its own); "diverged";
    "settings" (a dict, which runs it again); "record"; and what figures() says, NaN where a run did not measure it.
    """
    lines = []
    for record in records:
        settings, result = record["settings"], record["result"]
        method = settings.get("method", "in turn" if "rounds" in result else "originals")
        known = (OF_DENOISERS if original == "diffusion" else METHODS).get(method)
        own = {"scale": 1.0} | ({name: p.default for name, p in signature(known).parameters.items()} if known else {})
        options = {"λ" if name == "lam" else name: f"{value:g}" if isinstance(value, float) else value
                   for name, value in settings.items() if name not in NO_OPTIONS and own.get(name) != value}
        name = ", ".join([method, *(f"{option} = {value}" for option, value in sorted(options.items(), reverse=True))])
        rounds = result.get("rounds", [result])
        for last, one in enumerate(rounds, 1 + len(settings["forget"]) - len(rounds)):
            forget = settings["forget"][:last]
            of_grey = record.get("grey") or grey(forget)
            lines.append({"log": log, "line": record["line"], "original": original, "method": method,
                          "lam": settings.get("lam", own.get("lam", np.nan)), "label": ", ".join(map(str, forget)),
                          "seed": settings["seed"], "name": name, "diverged": one.get("diverged", ""), "settings": settings,
                          "record": record, **({} if "diverged" in one else figures(one, forget, of_grey))})
    return pd.DataFrame(lines)


@cache
def released():
    """The table() of all released logs; P and H against flat grey by the judge that scored a run, where that is known."""
    tables = []
    for path in sorted(RELEASED.rglob("*.jsonl"), key=lambda path: (path.parent != RELEASED, path.stem != "studies", path)):
        original = {"springs-5000": "5,000 digits"}.get(path.stem, "diffusion" if path.stem.startswith("diffusion") else
                                                         "MNIST" if path.parent == RELEASED else path.parent.name)
        records = [record for record in Log(path).records().values() if "forget" in record["settings"]]
        if not records:                                     # a log of something else, as of the controls
            continue
        judges = {digest for name, digest in records[0]["lineage"].items() if name.startswith("classifier")}
        tables.append(table(records, path.stem, original, released_grey(path.parent, judges)))
    return pd.concat(tables, ignore_index=True).copy()  # in one piece, or pandas warns of fragments


def released_grey(folder, judges):
    """A function of labels that returns (P, H) of flat grey by the judge of a folder's evaluations; NaN if it is none of the
    judges with these digests."""
    files = [json.loads((folder / f"evaluation-{label}.json").read_text()) for label in range(10)]
    if files[0]["lineage"]["classifier.pt"] not in judges:
        return lambda forget: (np.nan, np.nan)
    grey = [file["reference"]["grey"] for file in files]
    return lambda forget: (np.mean([grey[label]["forgotten_probability"] for label in forget]), grey[0]["entropy"])


def of(runs, figure):
    """The runs that measured a figure, each once: of a run that two logs hold, the first line counts."""
    return runs.dropna(subset=figure).drop_duplicates(RUN)


def less(runs, control, on=("original", "label", "seed")):
    """The runs with each figure less that of the runs named `control` with the same labels and seed, or else with what `on`
    names, their mean; shares in points. P and H stay as they are: they stand against grey already."""
    on, runs = list(on), runs.copy()
    columns = [*runs.columns[runs.columns.get_loc("record") + 1:]]
    controls = runs[runs["name"] == control].groupby(RUN)[columns].first()           # a line a run, whatever logs hold it
    partners = controls.groupby(level=on).mean().reindex(pd.MultiIndex.from_frame(runs[on]))
    change = runs[columns] - partners.set_axis(runs.index)
    change[[name for name in SHARES if name in columns]] *= 100
    stay = [name for name in columns if name.startswith(("P", "H"))]
    runs[columns] = change.assign(**runs[stay])
    return runs.copy()                                  # in one piece, as released() is


def summary(runs, columns, by="name"):
    """A table of texts: a line for each value of the column (or columns) `by`, in order, with n and the mean ± sd of each
    column of {heading: format as "+.3f"}; a run that two logs hold counts once."""
    texts, n, runs = {}, {}, runs.reindex(columns=runs.columns.union(columns, sort=False))
    for name, form in columns.items():
        groups = of(runs, name).groupby(by, sort=False)[name]
        texts[name], n[name] = groups.agg(spread, form), groups.size()
    order = runs.groupby(by, sort=False).size().index
    lines = pd.DataFrame(texts).reindex(order).fillna("–")
    lines.insert(0, "n", pd.DataFrame(n).max(axis=1).reindex(order).fillna(0).astype(int))
    return lines[lines["n"] > 0]


def spread(numbers, form):
    """'mean ± sd' of the numbers; without the spread if there is only one, and '–' if there is none."""
    numbers = pd.Series(numbers).dropna()
    if numbers.empty:
        return "–"
    text = f"{numbers.mean():{form.replace('.', 'z.')}}"    # z: no minus before a zero
    return f"{text} ± {numbers.std():{form.removeprefix('+')}}" if len(numbers) > 1 else text


def clustered(shares, form):
    """'mean (low to high)' of a share's differences, one per seed: a 95 % interval from the seeds' spread (Student's t)."""
    shares = pd.Series(shares).dropna()
    text = f"{shares.mean():{form.replace('.', 'z.')}}"
    if len(shares) < 2 or not shares.std():
        return text
    low, high = ttest_1samp(shares, 0).confidence_interval()
    return f"{text} ({low:{form}} to {high:{form}})"


def markdown(table):
    """A DataFrame in markdown, its index as the first columns."""
    table = table.reset_index()
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
