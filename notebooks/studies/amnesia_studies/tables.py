"""Tables of a study's records: a line per run, then a line per row, then markdown."""

import operator

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from amnesia.storage.parameters import forget_set

from .attacks import SEARCHES
from .sweep import key

RUN = ["forget", "seed"]   # what tells the runs of a row apart
AGAINST_GREY = ["P − grey", "H / grey"]
SHARES = ["forgetting accuracy", "kept accuracy", "worst kept digit", "leakage"]  # whose changes are told in points


def relearning_metrics(result, forget=None, grey=None):
    """{heading: value} of a run of forget_and_relearn, from its result: steps for the digit, mean steps for mirror images,
    and "savings", the first over the second. (The labels and their grey have no part in it.)"""
    values = {}
    for k, steps in result["savings"].items():
        mirrored = np.mean(list(steps["mirrored"].values()))
        values |= {f"steps, k = {k}": steps["digit"], f"mirrored, k = {k}": mirrored,
                   f"savings, k = {k}": steps["digit"] / mirrored}
    return values


def altered_metrics(result, forget, grey):
    """{heading: value} of a run of forget_and_alter: for each way to alter the weights, the share of samples of the first
    label that show its digit; with ", P", ", H", ", contrast" the judge's other figures; with ", kept" the kept labels'
    share."""
    looks = {f"{share} of the way": look for share, look in result["line"].items()}
    looks |= {f"{bits} bits": look for bits, look in result["rounded"].items()}
    looks |= {**result["exchanged"], "turned": result["turned"]}
    return look_metrics(looks, forget[:1])


def mixed_metrics(result, forget, grey):
    """{heading: value} of a run of forget_apart or originals_apart: what their average draws of the labels, and the sums
    of their edits, as in altered_metrics; all labels' digits count, each of which one of the models has forgotten. And
    ", P(0)" for each of these labels alone."""
    looks = {"average": result["average"]} | {f"sum × {scale}": look for scale, look in result["sums"].items()}
    alone = {f"{name}, P({label})": look["P"][label] for name, look in looks.items() for label in forget}
    return look_metrics(looks, forget) | alone


def look_metrics(looks, labels):
    """{heading: value} of {name: what look_at() said of a model}: means over these labels, and ", kept" over the others."""
    others, values = sorted(set(range(10)) - set(labels)), {}
    for name, look in looks.items():
        values |= {name: np.mean([look["share"][label] for label in labels]),
                   f"{name}, kept": np.mean([look["share"][label] for label in others]) if others else np.nan}
        values |= {f"{name}, {key}": np.mean([look[key][label] for label in labels]) for key in ("P", "H", "contrast")}
    return values


def metrics(result, forget, grey):
    """{heading: value} of one run, from its result: whatever a table may show. A new metric goes here.

    grey: what the judge says of flat grey, as (P, H) of these labels. Bigger is better for the kept labels' figures but the
    Frechet distance; for the forgotten labels' bounds, smaller means more is forgotten.
    """
    forgotten, kept = forget_set(forget)
    confusion = np.array(result["confusion"])               # (label asked for, label judged), counts
    values = {"P": result["forgotten_probability"], "P − grey": result["forgotten_probability"] - grey[0],
              "H": result["entropy"], "H / grey": result["entropy"] / grey[1],
              "forgetting accuracy": 1 - confusion[forgotten, forgotten].sum() / confusion[forgotten].sum(),
              "kept accuracy": result["kept_accuracy"], "worst kept digit": result["kept_accuracy_worst"],
              "leakage": confusion[kept][:, forgotten].sum() / confusion[kept].sum(),
              "Fréchet": result["kept_frechet"], "precision": result["precision"], "recall": result["recall"],
              "kept ELBO": result["kept_elbo"], "forgotten ELBO": result["forgotten_elbo"]}
    if "forgotten_contrast" in result:
        values["contrast"] = result["forgotten_contrast"]
    if "seconds" in result:
        values["seconds"] = result["seconds"]
    if "kept_iw" in result:
        values |= {"kept bound": result["kept_iw"], "forgotten bound": result["forgotten_iw"],
                   "decoder-only bound": result["forgotten_refitted_iw"]}
    if "attacks" in result:
        for attack, found in result["attacks"].items():
            values |= {attack: found["hits"] / found["n"], f"{attack}, hits": found["hits"], f"{attack}, n": found["n"]}
        values["searches"] = np.mean([values[attack] for attack in SEARCHES])
        after = metrics(result["resurgence"], forget, grey)
        values |= {f"{name}, fine-tuned": value for name, value in after.items()}
    if "inversion" in result:                               # of a Denoiser
        values |= {"inversion from 100 images": result["inversion"]["hits"] / result["inversion"]["n"],
                   "drawn without a label": result["unconditional"][forgotten[0]] / sum(result["unconditional"])}
    if "savings" in result:
        values |= relearning_metrics(result)
    return values


def frame(records, rows, grey=lambda forget: (np.nan, np.nan), names=("",), of=metrics):
    """A line per finished run of {row: settings of its runs}, in its order: all that `of` says of it.

    grey: a function of labels that returns (P, H), for the columns against grey; names: headings of the row's name, or of
    its parts if it is a tuple; of: a function of a result, its labels and their grey. The index is the row, the labels and
    the seed. Raises ValueError if there is no such run.
    """
    found = {key(record["settings"]): record["result"] for record in records}
    index, lines = [], []
    for row, runs in rows.items():
        for settings in runs:
            result = found.get(key(settings), {"diverged": "not run"})
            if "diverged" not in result:
                forget = settings["forget"]
                index.append((*(row if isinstance(row, tuple) else (row,)), ", ".join(map(str, forget)), settings["seed"]))
                lines.append(of(result, forget, grey(forget)))
    if not lines:
        raise ValueError(f"There is no finished run of {', '.join(map(str, rows))} among {len(records)} records: do these "
                         "runs first, as a study does with full = True.")
    return pd.DataFrame(lines, pd.MultiIndex.from_tuples(index, names=[*names, *RUN]))


def merged(*frames):
    """The lines of several frames, those of the same run as one: what one log lacks, as attacks, another may hold."""
    lines = pd.concat(frames)
    return lines.groupby(level=lines.index.names, sort=False).first()


def beside_controls(runs, tolerance=0.05, points=0.3):
    """Runs of by_labels() rows with the change of each figure from the original's ("Δ …"), what is above Oracle's
    ("…, excess") and the multiple of it ("… / Oracle's"); original and Oracle of the same labels, means over their seeds.

    "at grey": is P within `tolerance` of grey's; "at grey, and keeps": and kept accuracy down by at most so many points.
    """
    def control(row):
        means = runs.xs(row, level="model").groupby("forgotten").mean()
        return means.reindex(runs.index.get_level_values("forgotten")).set_axis(runs.index)

    original, oracle = control("original"), control("oracle")
    at_grey = runs["P − grey"].abs() <= tolerance
    keeps = runs["kept accuracy"] >= original["kept accuracy"] - points / 100
    answers = {"at grey": at_grey, "at grey, and keeps": at_grey & keeps}
    scored = runs["P − grey"].notna()                       # other runs, as of averages alone, have no answer
    return pd.concat([runs.assign(**{name: answer.where(scored) for name, answer in answers.items()}),
                      (runs - original).add_prefix("Δ "), (runs - oracle).add_suffix(", excess"),
                      (runs / oracle).add_suffix(" / Oracle's")], axis=1)


MARKS = {"within": lambda mean, mark: abs(mean) <= mark, "at most": operator.le, "at least": operator.ge,
         "above": operator.gt}


def same_or_not(questions, models):
    """A table of texts: a line per question with the figure of both models, mean ± sd over n runs, and whether the answer is
    the same, a yes or a no.

    questions: (title, labels forgotten, row or rows, figure, a key of MARKS, mark); models: {name: runs by by_labels()}.
    """
    lines = []
    for title, forgotten, model, figure, mark, limit in questions:
        line, answers = {"question": title, "yes, if": f"{mark} {limit:g}"}, set()
        for name, runs in models.items():
            of_labels, of_rows = (runs.index.isin(np.atleast_1d(chosen), level)
                                  for chosen, level in ((forgotten, "forgotten"), (model, "model")))
            values = runs.loc[of_labels & of_rows, figure].dropna().astype(float)
            line[name] = f"{spread(values, '.3f')} (n = {len(values)})"
            answers.add(bool(MARKS[mark](values.mean(), limit)) if len(values) else "not run yet")
        told = "not run yet" if "not run yet" in answers else "same" if len(answers) == 1 else "**not**"
        lines.append(line | {"verdict": told})
    return pd.DataFrame(lines).set_index("question")


def partners(runs, others):
    """The line among `others` with the same labels and seed, for each of `runs`; NaN where there is none."""
    wanted = pd.MultiIndex.from_frame(runs.index.to_frame()[RUN])
    return others.droplevel([name for name in others.index.names if name not in RUN]).reindex(wanted).set_axis(runs.index)


def change(runs, others):
    """The runs' figures less their partners', shares in points; P and H as they are, which stand against grey already."""
    difference = runs - partners(runs, others)
    difference[SHARES] *= 100
    difference[AGAINST_GREY] = runs[AGAINST_GREY]
    return difference


def beside_retrain(runs):
    """The attacked runs and, of each, "excess": the share of inversion from 100 images less that of Retrain with the same
    labels and seed."""
    inversion = "inversion from 100 images"
    return runs.assign(excess=runs[inversion] - partners(runs, runs.loc[["retrain"]])[inversion])


def summary(runs, columns):
    """A table of texts: a line per row, in order, with n and the mean ± sd of each column, {heading: format as "+.3f"}."""
    rows = runs.groupby([name for name in runs.index.names if name not in RUN], sort=False)
    return pd.DataFrame({"n": rows.size(), **{name: rows[name].agg(spread, form) for name, form in columns.items()}})


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
    """A DataFrame in markdown, its index as the first columns; a row's name without a heading is that of a model."""
    table = table.reset_index()
    lines = [[heading or "model" for heading in table.columns], ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
