"""What can be said of the GPU path only where there is a CUDA card: python benchmarks/gpu.py

Checks on the card that the same seed gives the same values, also after a run was cut off and resumed, and counts how often
training waits for the card; then times the stages beside the reference recipe, and all five notebooks. Prints one table and
writes gpu.json, with the card's name; `gpu.py page` writes that into README.md here.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import warnings

import side_by_side
import torch
from measuring import versions

from amnesia import CVAE, Stage, Workspace, diagonal_fisher, fit, load_pictures, negative_elbo_terms, pick_device

RESULT = side_by_side.REPOSITORY / "benchmarks" / "gpu.json"
STAGES = {stage: pair for stage, pair in side_by_side.STAGES.items() if stage not in ("04 + 05", "arithmetic")} | {
    "all five": (None, side_by_side.ours_all)}


class CutOff(Exception):
    """What ends a run here in the place of a lost machine."""


class Dying(Stage):
    """A stage whose machine is lost as soon as it has saved its progress."""

    due = True

    def save_progress(self, *run):
        super().save_progress(*run)
        raise CutOff


def train(digits, steps, stage=None):
    """The weights, losses and pictures of a training on the digits' device."""
    torch.manual_seed(0)
    device = digits.images.device
    cvae, labels, z = CVAE().to(device), torch.arange(10, device=device), torch.randn(10, 8, device=device)

    def loss():
        reconstruction, kl = negative_elbo_terms(cvae, *digits.batch(128))
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    history = fit(cvae, loss, steps=steps, learning_rate=3e-3, data=digits, stage=stage, capture=True,
                  snapshot=lambda: {"frames": cvae.generate(labels, z)})
    return [*cvae.parameters(), *history["terms"].values(), history["frames"]]


def fisher(digits, stage=None):
    """The Fisher information of an untrained model on the digits' device."""
    torch.manual_seed(0)
    cvae = CVAE().to(digits.images.device)
    return list(diagonal_fisher(cvae, 5000, stage=stage).values())


def resumed(work, store, *arguments):
    """{"repeated", "resumed"}: whether work(*arguments) gives the same again, and when it is cut off and resumed."""
    def same(values):
        return all(torch.equal(a, b) for a, b in zip(whole, values, strict=True))

    whole, name = work(*arguments), f"{work.__name__}.pt"
    repeated = same(work(*arguments))
    try:
        work(*arguments, stage=Dying(store, name, {}))
    except CutOff:
        return {"repeated": repeated, "resumed": same(work(*arguments, stage=Stage(store, name, {})))}
    raise RuntimeError("The run ended before it was saved for the first time: give it more steps.")


def waits(work, *arguments):
    """How often work(*arguments) waits for the card, by torch's own count."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in heard)


def checks(digits, steps):
    """What is looked at besides the clock, on the digits' device: {"training": …, "Fisher information": …, "waits": …}."""
    with tempfile.TemporaryDirectory() as folder:
        store = Workspace(folder)
        found = {"training": resumed(train, store, digits, steps), "Fisher information": resumed(fisher, store, digits)}
    return found | ({"waits": {n: waits(train, digits, n) for n in (600, 1200)}} if digits.images.is_cuda else {})


def measure(work, argument):
    """One run, with the peak of the card's memory, and in this process: the peak of the host's is no question here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.redirect_stdout(io.StringIO()):
        return side_by_side.counted(work, argument)


def measured(digits, steps, parts, repeats):
    """The content of gpu.json, growing, from this many steps of the checks and these parts of the reference's stages."""
    result = {"checks": checks(digits, steps), "stages": {}, "versions": versions() | {"cuda": torch.version.cuda}}
    for (stage, pair), part in zip(STAGES.items(), parts, strict=True):
        result["stages"] |= side_by_side.compare({stage: pair}, [part], repeats, measure)
        yield result


def table(result):
    """What is printed of gpu.json: a table, and a sentence on each check."""
    found, of = dict(result["checks"]), result["versions"]
    waited = found.pop("waits", {})
    which = {True: "the same values", False: "OTHER values"}
    lines = [f"{name}: {which[check['repeated']]} from the same seed, {which[check['resumed']]} when cut off and resumed."
             for name, check in found.items()]
    if waited:
        counts = ", ".join(f"{count} in {n} steps" for n, count in waited.items())
        lines.append(f"Waits for the card: {counts}, with those for 30 pictures and a look at the losses every second.")
    return "\n".join([*side_by_side.rows(result["stages"]), "", *lines,
                      f"{of['hardware']}, torch {of['torch']}, CUDA {of['cuda']}; median (min to max) of n runs."])


def main(what="3"):
    """what: how often each side is measured, or "page", which writes the table of gpu.json into README.md here."""
    if what == "page":
        sys.path.append(str(side_by_side.REPOSITORY / "tools"))
        from release import fill

        return fill(side_by_side.PAGE, "gpu", table(json.loads(RESULT.read_text())))
    try:
        device = pick_device("cuda")
    except ValueError:
        raise SystemExit("Nothing was measured, because torch finds no CUDA card here that works: run this where there is "
                         "one, as in a Colab GPU runtime.") from None
    folder = os.environ.setdefault("AMNESIA_DATA", str(side_by_side.REPOSITORY / "data"))
    for result in measured(load_pictures("MNIST", folder, device)[0], 12_500, (200, 1000, 100, None), int(what)):
        RESULT.write_text(json.dumps(result, indent=1))
    print(f"\n{table(result)}\n\nWritten: {RESULT}")


if __name__ == "__main__":
    main(*sys.argv[1:])
