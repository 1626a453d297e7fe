"""The reference recipe beside this project, on one machine, one process after another: python benchmarks/side_by_side.py

The reference is our own plain implementation of what the paper's code does. Its long stages are timed over a stated part
and scaled; ours run to their end, and the quality that they reach is measured. Ours are the notebooks' own cells, so what
is timed is what is read. Writes this machine's part of side_by_side.json, and the tables made from it. `--quick` takes
three minutes at most.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import measuring
from measuring import peak, versions

REPOSITORY = Path(__file__).resolve().parents[1]
RELEASED = REPOSITORY / "checkpoints" / "released"
RESULT = REPOSITORY / "benchmarks" / "side_by_side.json"
sys.path.insert(0, str(REPOSITORY / "notebooks"))

PAGE = REPOSITORY / "benchmarks" / "README.md"
# What brings 01's test -ELBO below the reference's 96.65 nats soonest: a shorter run needs nothing to hold it back
ENOUGH = {"steps": 5400, "batch_size": 192, "learning_rate": 4e-3, "weight_decay": 0, "dropout": 0}


def machine():
    """The processor's name, and how fit() multiplies there: in bfloat16, asked for or as torch rounds by itself, or not."""
    import torch

    from amnesia.device import quick_products, rounds_by_autocast

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    with quick_products():
        quick = a @ a
    rounded = ((quick - a @ a).norm() / quick.norm()).item() > 1e-4   # float32 in another order: below 1e-6
    how = "in bfloat16, asked for" if rounds_by_autocast() else "in bfloat16" if rounded else "in float32 only"
    return f"{(named or [platform.processor()])[0]}, matrix products {how}"


def device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def sync():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def loader():
    """The reference's data: torchvision's MNIST, one item at a time through ToTensor, collated into batches of 256."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from amnesia import load_pictures

    folder = Path(os.environ.get("AMNESIA_DATA") or REPOSITORY / "data")
    if len(load_pictures("MNIST", folder)[0]) != 60_000:  # it downloads them if it can
        raise SystemExit("The comparison needs all of MNIST. Put it in $AMNESIA_DATA, in torchvision's layout.")
    return DataLoader(datasets.MNIST(folder, transform=transforms.ToTensor()), batch_size=256, shuffle=True)


def reference_negative_elbo(cvae, x, y):
    """Summed over the batch, from pixel probabilities, as in the paper's code."""
    import torch
    import torch.nn.functional as F

    mean, log_var = cvae.encode(x, y)
    z = mean + (log_var / 2).exp() * torch.randn_like(mean)
    reconstruction = F.binary_cross_entropy(cvae.decode(z, y).sigmoid(), x, reduction="sum")
    return reconstruction - 0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()


def reference_train(part):
    """`part` steps of 100,000: DataLoader, sigmoid, binary cross-entropy, Adam at 1e-4."""
    import torch

    from amnesia import CVAE, one_hot

    cvae, data = CVAE().to(device()), loader()
    batches = iter(data)
    optimizer = torch.optim.Adam(cvae.parameters(), 1e-4)
    for step in range(part + 10):
        if step == 10:  # warm
            sync()
            begin = time.perf_counter()
        try:
            x, labels = next(batches)
        except StopIteration:
            batches = iter(data)
            x, labels = next(batches)
        x, y = x.view(-1, 784).to(device()), one_hot(labels, 10).to(device())
        optimizer.zero_grad()
        (reference_negative_elbo(cvae, x, y) / len(x)).backward()
        optimizer.step()
    sync()
    return {"seconds": (time.perf_counter() - begin) * 100_000 / part, "measured": f"{part:,} of 100,000 steps"}


def reference_fisher(part):
    """`part` samples of 50,000, one at a time."""
    import torch

    from amnesia import CVAE, Saved, one_hot

    cvae = Saved(RELEASED / "cvae.pt").build(CVAE, device())
    total = {name: torch.zeros_like(p) for name, p in cvae.named_parameters()}
    for sample in range(part + 10):
        if sample == 10:
            sync()
            begin = time.perf_counter()
        label = torch.randint(10, (1,), device=device())
        cvae.zero_grad()
        reference_negative_elbo(cvae, cvae.generate(label), one_hot(label, 10)).backward()
        for name, p in cvae.named_parameters():
            if p.grad.isnan().any():  # a check that the paper's code makes
                raise FloatingPointError(name)
            total[name] += p.grad.square() / 50_000
    sync()
    return {"seconds": (time.perf_counter() - begin) * 50_000 / part, "measured": f"{part:,} of 50,000 samples"}


def reference_forget(part):
    """`part` steps of 10,000: 256 images of noise, 256 replayed, the penalty in a loop over the parameters, Adam at 1e-4."""
    import torch

    from amnesia import CVAE, Saved, one_hot

    original, cvae = (Saved(RELEASED / "cvae.pt").build(CVAE, device()) for _ in range(2))
    fim = {name: f.to(device()) for name, f in Saved(RELEASED / "fim-cvae.pt").state.items()}
    optimizer = torch.optim.Adam(cvae.parameters(), 1e-4)

    for step in range(part + 10):
        if step == 10:
            sync()
            begin = time.perf_counter()
        kept = torch.randint(1, 10, (256,), device=device())
        loss = reference_negative_elbo(cvae, torch.rand(256, 784, device=device()), one_hot(torch.zeros_like(kept), 10))
        loss = loss + reference_negative_elbo(cvae, original.generate(kept), one_hot(kept, 10))
        old = dict(original.named_parameters())
        for name, p in cvae.named_parameters():
            loss = loss + 100 * (fim[name] * (p - old[name].detach()).square()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sync()
    return {"seconds": (time.perf_counter() - begin) * 10_000 / part, "measured": f"{part:,} of 10,000 steps"}


def notebook(number, workspace, **parameters):
    """Runs the cells of a notebook in this process; returns their names' values and the seconds of each cell."""
    import matplotlib

    matplotlib.use("Agg")
    from amnesia import begin

    namespace, seconds = {"begin": begin}, {}
    path = next((REPOSITORY / "notebooks").glob(f"{number}_*.ipynb"))
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or source.startswith("#@title"):
            continue
        begin = time.perf_counter()
        exec(source, namespace)
        sync()
        seconds[source] = time.perf_counter() - begin
        if "parameters" in cell["metadata"].get("tags", []):
            namespace.update(workspace=str(workspace), **parameters)
    return namespace, seconds


def of_the_cell(seconds, text):
    """The seconds of the one cell that holds `text`."""
    return next(value for source, value in seconds.items() if text in source)


def ours_train(workspace):
    names, seconds = notebook("01", workspace, **ENOUGH)
    return {"seconds": of_the_cell(seconds, "fit("), "measured": f"to the end, {ENOUGH['steps']:,} steps",
            "quality": {"test −ELBO": names["values"].mean().item()}}


def ours_fisher(workspace):
    _, seconds = notebook("02", workspace)
    return {"seconds": of_the_cell(seconds, "diagonal_fisher(cvae, stage.n_samples"), "measured": "to the end, 50,000 samples"}


def ours_forget(workspace):
    names, seconds = notebook("03", workspace)
    memory_mb = peak()
    notebook("04", workspace)
    result = notebook("05", workspace)[0]["result"]
    before, after, grey = result.original, result.amnesiac, result.reference["grey"]
    quality = {"P − grey": after["forgotten_probability"] - grey["forgotten_probability"],
               "H / grey": after["entropy"] / grey["entropy"], "kept ELBO": after["kept_elbo"] - before["kept_elbo"]}
    return {"seconds": of_the_cell(seconds, "fit("), "measured": f"to the end, {names['steps']:,} steps",
            "quality": quality, "memory_mb": memory_mb}


def in_float32(ours):
    """The same side, with no matrix product rounded."""
    def plain(workspace):
        import torch

        from amnesia import training

        with (patch.object(training, "bfloat16_products", lambda device: contextlib.nullcontext()),
              patch.object(torch, "set_float32_matmul_precision", lambda precision: None)):
            return ours(workspace)

    plain.__name__ = f"{ours.__name__}_in_float32"
    return plain


def ours_evaluate(workspace):
    begin = time.perf_counter()
    notebook("04", workspace)
    notebook("05", workspace)
    return {"seconds": time.perf_counter() - begin, "measured": "both notebooks, imports and pictures included"}


def ours_all(workspace):
    begin = time.perf_counter()
    for number in ("01", "02", "03", "04", "05"):
        notebook(number, workspace)
    return {"seconds": time.perf_counter() - begin, "measured": "all five at their defaults, pictures included"}


def ours_arithmetic(_):
    """What the matrix products alone cost, over what a training step like 01's costs, on random images."""
    import torch

    from amnesia import CVAE, Pictures, negative_elbo_terms
    from amnesia.device import bfloat16_products, quick_products, rounds_by_autocast
    from amnesia.training import optimizer_for

    cvae, rounds = CVAE().to(device()), 300
    train = Pictures(torch.randint(256, (60_000, 784), dtype=torch.uint8), torch.randint(10, (60_000,))).to(device())
    optimizer, scheduler = optimizer_for(cvae, 20 * rounds, 1e-3, "one-cycle", 0.012)
    masks = torch.ones(1000, 784, device=device())

    def step(rounding):
        x, y = train.batch(128)
        optimizer.zero_grad()
        with rounding():
            terms = negative_elbo_terms(cvae, x, y, seen=x * masks[torch.randint(1000, (128,), device=device())])
        sum(term.mean() for term in terms).backward()
        optimizer.step()
        scheduler.step()

    def factors(dtype):
        for p in cvae.parameters():
            if p.ndim == 2:
                yield p.detach().to(dtype), *(torch.randn(128, n, device=device()).to(dtype) for n in reversed(p.shape))

    def products(layers):
        for first, (w, a, delta) in enumerate(layers):
            a @ w.T
            delta.T @ a
            if first:
                delta @ w

    def seconds(work):
        for _ in range(20):
            work()
        sync()
        begin = time.perf_counter()
        for _ in range(rounds):
            work()
        sync()
        return (time.perf_counter() - begin) / rounds

    result = {"measured": "one step of 128 images"}
    fast = torch.bfloat16 if rounds_by_autocast() else torch.float32
    for kind, dtype, rounding, precision in (
            ("", torch.float32, contextlib.nullcontext, contextlib.nullcontext()),
            ("quick_", fast, lambda: bfloat16_products(torch.device(device())), quick_products())):
        layers = list(factors(dtype))
        with precision:
            pairs = [(seconds(partial(products, layers)), seconds(partial(step, rounding))) for _ in range(5)]
        result |= {f"{kind}seconds": statistics.median(b for _, b in pairs),
                   f"{kind}share": statistics.median(a / b for a, b in pairs)}
    return result


STAGES = {"01 to a test −ELBO of 96.65": (reference_train, ours_train),
          "02 Fisher, 50,000 samples": (reference_fisher, ours_fisher),
          "03 forget": (reference_forget, ours_forget),
          "04 + 05": (None, ours_evaluate),
          "arithmetic": (None, ours_arithmetic)}
IN_FLOAT32 = {ours: in_float32(ours) for ours in (ours_train, ours_forget)}
WORK = {work.__name__: work for several in (*STAGES.values(), IN_FLOAT32.values()) for work in several if work}


def measure(function, argument):
    """One run in a process of its own."""
    return measuring.measure(__file__, "--one", function.__name__, argument)


def one(name, argument):
    """The child's side of measure(), with the threads that every notebook takes."""
    from amnesia import pick_device

    pick_device()
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        result = counted(WORK[name], int(argument) if argument.isdigit() else Path(argument))
    print(json.dumps(result))


def counted(work, argument):
    """work(argument)'s result, with the peak of the memory."""
    result = work(argument)
    return {"memory_mb": peak()} | result


def compare(stages, parts, repeats, measure=measure):
    """{stage: {"reference": runs, "ours": runs, "float32": runs}}: the sides in turn, the reference over this part of its
    steps; on a CPU, what rounds matrix products also without."""
    compared = {}
    for (stage, (reference, ours)), part in zip(stages.items(), parts, strict=True):
        sides = {"reference": [], "ours": [], "float32": []}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as workspace:
                if reference:
                    sides["reference"].append(measure(reference, part))
                sides["ours"].append(measure(ours, workspace))
            if ours in IN_FLOAT32 and device() == "cpu":
                with tempfile.TemporaryDirectory() as workspace:
                    sides["float32"].append(measure(IN_FLOAT32[ours], workspace))
        compared[stage] = {side: runs for side, runs in sides.items() if runs}
        print(stage, {side: [round(run["seconds"], 2) for run in runs] for side, runs in sides.items()}, flush=True)
    return compared


def rows(stages):
    """The lines of a markdown table, from what compare() returned."""
    def spread(runs):
        values = sorted(run["seconds"] for run in runs)
        middle = statistics.median(values)
        digits = 0 if middle >= 100 else 1
        return f"{middle:,.{digits}f} s ({values[0]:,.{digits}f} to {values[-1]:,.{digits}f}, n = {len(values)})"

    def quality(runs):
        return "".join(f", {name} {value:.2f}" for name, value in runs[0].get("quality", {}).items())

    lines = ["| stage | reference recipe | this project | ratio | peak memory |", "|---|---|---|---|---|"]
    for stage, sides in stages.items():
        ours, plain = sides["ours"], sides.get("float32")
        memory = " / ".join(f"{max(run['memory_mb'] for run in sides[side]):,.0f} MB" for side in ("reference", "ours")
                            if side in sides)
        text = f"{spread(ours)}, {ours[0]['measured']}{quality(ours)}"
        text += f"; without rounding {spread(plain)}{quality(plain)}" if plain else ""
        if "reference" in sides:
            ratio = statistics.median(run["seconds"] for run in sides["reference"]) / statistics.median(
                run["seconds"] for run in ours)
            lines.append(f"| {stage} | {spread(sides['reference'])}, from {sides['reference'][0]['measured']} "
                         f"| {text} | **{ratio:.0f} ×** | {memory} |")
        else:
            lines.append(f"| {stage} | | {text} | | {memory} |")
    return lines


def tables(results):
    """The markdown tables of the page, one for each machine, from the content of side_by_side.json."""
    return "\n\n".join(f"**{name}:**\n\n{table(result)}" for name, result in results.items())


def table(result):
    """The markdown table of one machine."""
    stages = {stage: sides for stage, sides in result["stages"].items() if stage != "arithmetic"}
    share, quick, step, quick_step = (statistics.median(run[key] for run in result["stages"]["arithmetic"]["ours"])
                                      for key in ("share", "quick_share", "seconds", "quick_seconds"))
    versions = result["versions"]
    return "\n".join([*rows(stages), "", f"A training step of 128 images takes {1 / share:.1f} × the time of its matrix "
                      f"products alone in float32 ({1000 * step:.1f} ms), {1 / quick:.1f} × as `fit` computes them "
                      f"({1000 * quick_step:.1f} ms). {versions['hardware']}, torch {versions['torch']}; median (min to "
                      "max) of n runs."])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run of each, small parts of the reference; writes nothing")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(*options.one)
    sys.path.append(str(REPOSITORY / "tools"))
    from release import fill

    repeats, parts = (1, (100, 300, 60)) if options.quick else (3, (400, 2000, 150))
    result = {"stages": compare(STAGES, (*parts, None, None), repeats), "versions": versions()}
    if not options.quick:
        results = json.loads(RESULT.read_text()) | {machine(): result}
        RESULT.write_text(json.dumps(results, indent=1))
        fill(PAGE, "side by side", tables(results))
    print(table(result))


if __name__ == "__main__":
    main()
