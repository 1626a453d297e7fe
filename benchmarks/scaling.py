"""How cost grows: python benchmarks/scaling.py (some minutes on two cores).

Times the helper's own fit(), diagonal_fisher() and selective_amnesia() on random digits over 200 steps, each in a process
of its own: what a step costs does not depend on what was learned. Writes scaling.json, scaling.png and the table
in README.md here.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from measuring import measure, peak, versions

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT, PICTURE = (REPOSITORY / "benchmarks" / f"scaling.{kind}" for kind in ("json", "png"))
sys.path.extend(str(REPOSITORY / "notebooks" / folder) for folder in ("", "studies"))

GRID = {"samples": (1000, 10_000, 100_000, 1_000_000), "batch": (32, 64, 128, 256, 512, 1024), "width": (1, 2, 4),
        "digits": (1, 2, 5, 9)}
STEPS = 200


def cvae(width=1):
    from amnesia import CVAE

    return CVAE(hidden=(512 * width, 256 * width))


def timed(work):
    """Seconds of work(), after a first call that warms up."""
    work()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def samples(n):
    """The Fisher information of n samples."""
    from amnesia import diagonal_fisher

    model = cvae()
    diagonal_fisher(model, 1000)
    before, begin = peak(), time.perf_counter()
    diagonal_fisher(model, n)
    return {"seconds": time.perf_counter() - begin, "growth_mb": peak() - before, "memory_mb": peak()}


def training_step(batch, width=1):
    """A step of notebook 01's loss, in milliseconds."""
    import torch

    from amnesia import Pictures, fit, negative_elbo_terms

    model = cvae(width)
    digits = Pictures(torch.randint(256, (60_000, 784), dtype=torch.uint8), torch.arange(60_000) % 10)

    def loss():
        return {"negative ELBO": sum(negative_elbo_terms(model, *digits.batch(batch))).mean()}

    return timed(lambda: fit(model, loss, steps=STEPS, learning_rate=1e-4)) * 1000 / STEPS


def forgetting_step(digits=1, width=1):
    """A step of forgetting by replay, as the studies do it, in milliseconds."""
    import torch

    from amnesia import Pictures
    from amnesia_studies.methods import Task, selective_amnesia

    model = cvae(width)
    fim = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    nothing = Pictures(torch.zeros(1, 784, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))     # which it does not read
    task = Task(model, fim, nothing, torch.arange(digits), torch.arange(digits, 10), scale=STEPS / Task.steps)
    return timed(lambda: selective_amnesia(task)) * 1000 / STEPS


def width(factor):
    """The three costly stages of the series for a model so many times as wide, in seconds: steps times a step's time."""
    from amnesia import diagonal_fisher
    from amnesia_studies.methods import Task

    model = cvae(factor)
    return {"01": 12.5 * training_step(128, factor), "02": 5 * timed(lambda: diagonal_fisher(model, 10_000)),
            "03": Task.steps / 1000 * forgetting_step(1, factor), "weights": sum(p.numel() for p in model.parameters())}


WORK = {"samples": samples, "batch": lambda n: {"milliseconds": training_step(n)}, "width": width,
        "digits": lambda n: {"milliseconds": forgetting_step(n)}}


def table(result):
    """benchmarks/README.md's table."""
    def cells(kind, form):
        return [form(value, result[kind][str(value)]) for value in GRID[kind]]

    rows = [("Fisher information, samples",
             cells("samples", lambda n, r: f"{n:,}: {r['seconds']:.2f} s, peak {r['memory_mb']:.0f} MB")),
            ("training step, batch", cells("batch", lambda n, r: f"{n}: {r['milliseconds']:.1f} ms")),
            ("01 + 02 + 03, model width", cells("width", lambda n, r: f"{n} × ({r['weights'] / 1e6:.1f} M weights): "
                                                                      f"{r['01'] + r['02'] + r['03']:.0f} s")),
            ("forgetting step by replay, digits", cells("digits", lambda n, r: f"{n}: {r['milliseconds']:.1f} ms"))]
    versions = result["versions"]
    return "\n".join(["| against | |", "|---|---|", *(f"| {title} | {'; '.join(texts)} |" for title, texts in rows), "",
                      f"Median of {result['repeats']} runs each. A step's time is the mean of {STEPS}; the row of widths "
                      "is the stages' steps times that, not whole runs, and was measured minutes after the others. "
                      f"{versions['hardware']}, torch {versions['torch']}."])


def draw(result):
    from amnesia import png, subplots

    figure, axes = subplots(1, 4, figsize=(13, 2.9), layout="constrained")
    panels = (("samples", "seconds", "02: Fisher, seconds", "samples"), ("batch", "milliseconds", "01: a step, ms", "batch"),
              ("width", None, "01 + 02 + 03, seconds", "model width"),
              ("digits", "milliseconds", "forgetting by replay: a step, ms", "digits forgotten"))
    for axis, (kind, key, title, label) in zip(axes, panels, strict=True):
        runs = [result[kind][str(value)] for value in GRID[kind]]
        y = [run[key] if key else run["01"] + run["02"] + run["03"] for run in runs]
        axis.plot(GRID[kind], y, "o-")
        axis.set(title=title, xlabel=label)
        if kind in ("samples", "batch"):
            linear = [y[-1] * value / GRID[kind][-1] for value in GRID[kind]]
            axis.plot(GRID[kind], linear, "--", color="gray", linewidth=0.8)
            axis.set(xscale="log", yscale="log")
            axis.yaxis.set_minor_formatter("")
        else:
            axis.set_ylim(0, 1.1 * max(y))
    return png(figure)


def main(repeats=3):
    sys.path.append(str(REPOSITORY / "tools"))
    from release import fill

    result = {"versions": versions(), "repeats": repeats}
    for kind, sizes in GRID.items():
        runs = {value: [measure(__file__, kind, value) for _ in range(repeats)] for value in sizes}
        result[kind] = {value: {key: statistics.median(run[key] for run in some) for key in some[0]}
                        for value, some in runs.items()}
        print(kind, result[kind], flush=True)
    RESULT.write_text(json.dumps(result, indent=1))
    result = json.loads(RESULT.read_text())
    PICTURE.write_bytes(draw(result))
    fill(REPOSITORY / "benchmarks" / "README.md", "scaling", table(result))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        from amnesia import pick_device

        pick_device("cpu")
        print(json.dumps(WORK[sys.argv[1]](int(sys.argv[2]))))
    else:
        main()
