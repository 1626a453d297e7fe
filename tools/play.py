"""Writes the page that needs no install, figures/released/play.html: python tools/play.py run

`run` forgets the 0, and in a second run the 8, as notebook 3 does at its defaults (two minutes on two cores), and puts the
decoder at some of the steps into the page, beside the judge and the script in play.html that runs them. Without `run` the
page keeps the weights that it has, and the rest is written anew.

Weights are rounded to multiples of the steps below, an edit's more coarsely than the original's: pixels stay within 4 of
255 and the judge's probabilities within 0.05. A stop holds its difference from the stop before it. What remains is
compressed and written as base85: below 4 MB. tests/test_play.py compares the page with torch.
"""

import base64
import hashlib
import json
import re
import sys
import tempfile
import tomllib
import zlib
from copy import deepcopy
from pathlib import Path

import nbformat
import numpy as np
import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))

from amnesia import Classifier, Saved, fit

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATE, PAGE = Path(__file__).with_suffix(".html"), REPOSITORY / "figures" / "released" / "play.html"
NOTEBOOK = REPOSITORY / "notebooks" / "03_forget.ipynb"
FILES = [REPOSITORY / "checkpoints" / "released" / name for name in ("cvae.pt", "fim-cvae.pt", "classifier.pt")]
HELD = re.compile('"application/json">(.*)</script>\n<script id="numbers" type="text/plain">(.*)</script>')  # by the page
FORGOTTEN, OTHER = 0, 8
STOPS = (0, 93, 230, 322, 550, 1600)  # steps: where one sees the strokes go; grey does not change from about 700 on
DECODER_STEPS, JUDGE_STEPS = (1 / 8192, 1 / 4096, 1 / 2200), (1 / 600,) * 5  # layer by layer
COARSER = 6  # an edit's steps


def forgetting(digit, stops):
    """The decoders at these steps of a run of notebook 3 on the released files: its own cells up to the loss, at their
    defaults but for the digit."""
    names, taken, done = {}, [], iter(range(stops[-1]))
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and "loss" not in names:
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= {"forget": [digit], "device": "cpu", "workspace": tempfile.mkdtemp()}
    cvae = names["cvae"]

    def loss():
        if next(done) in stops:
            taken.append(deepcopy(cvae.decoder))
        return names["loss"]()

    torch.manual_seed(0)
    fit(cvae, loss, steps=stops[-1], learning_rate=names["learning_rate"], title=f"forgetting {digit}")
    return [*taken, cvae.decoder]


def layers(network):
    """Weight (…, out) and bias (out,) of each layer, in the order in which the page multiplies; images channel by channel
    within a pixel, where torch has pixel by pixel within a channel."""
    found = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for before, layer in zip([None, *found], found, strict=False):
        weight = layer.weight.detach()
        if isinstance(layer, nn.Conv2d):
            weight = weight.permute(1, 2, 3, 0)
        elif isinstance(before, nn.Conv2d):
            weight = weight.unflatten(1, (before.out_channels, -1)).permute(2, 1, 0).flatten(0, 1)
        else:
            weight = weight.T
        yield weight, layer.bias.detach()


def multiples(network, steps):
    """All weights in multiples of their layer's step, one array."""
    return np.concatenate([(values / step).numpy().ravel().astype(np.float64)
                           for pair, step in zip(layers(network), steps, strict=True) for values in pair])


def packed(numbers):
    """Whole numbers as text: sign last, low bytes before high bytes, deflate, base85. Raises ValueError above 16 bits."""
    unsigned = np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
    if unsigned.max() > 0xFFFF:
        raise ValueError("A weight is too large for 16 bits: choose larger steps in tools/play.py.")
    deflate = zlib.compressobj(9, strategy=zlib.Z_FILTERED)  # only the high bytes, nearly all 0, repeat
    planes = np.concatenate([unsigned & 0xFF, unsigned >> 8]).astype(np.uint8)
    return base64.b85encode(deflate.compress(planes.tobytes()) + deflate.flush()).decode()


def models():
    """What the page holds of the models, two texts: about them, and their numbers."""
    judge = Saved(FILES[-1]).build(Classifier, "cpu")
    stops, (other,) = forgetting(FORGOTTEN, STOPS), forgetting(OTHER, STOPS[-1:])
    original = multiples(stops[0], DECODER_STEPS).round()
    at, edits = original, []
    for decoder in stops[1:]:
        edits.append(((multiples(decoder, DECODER_STEPS) - at) / COARSER).round())
        at = at + COARSER * edits[-1]
    edits.append(((multiples(other, DECODER_STEPS) - original) / COARSER).round())
    shapes = {name: [[*weight.shape, step] for (weight, _), step in zip(layers(network), steps, strict=True)]
              for name, network, steps in (("decoder", other, DECODER_STEPS), ("judge", judge, JUDGE_STEPS))}
    about = {"digests": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES},
             "forgotten": FORGOTTEN, "other": OTHER, "stops": STOPS, "coarser": COARSER, **shapes}
    numbers = np.concatenate([original, *edits, multiples(judge, JUDGE_STEPS).round()]).astype(np.int64)
    return json.dumps(about), packed(numbers)


def home():
    """The repository's address, once pyproject.toml says it; until then "", and the page has its own short help only."""
    repository = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["amnesia"]["repository"]
    return f"https://github.com/{repository}" if repository else ""


def write(run=False):
    """Writes the page, with the models that it has unless `run`. Raises ValueError above 4 MB."""
    about, numbers = models() if run else HELD.search(PAGE.read_text()).groups()
    page = TEMPLATE.read_text().replace("{{home}}", home()).replace("{{about}}", about).replace("{{numbers}}", numbers)
    if len(page.encode()) > 4_000_000:
        raise ValueError(f"play.html would have {len(page.encode()):,} bytes: choose larger steps in tools/play.py.")
    PAGE.write_text(page)


if __name__ == "__main__":
    write(run=sys.argv[1:] == ["run"])
