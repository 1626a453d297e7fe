"""Writes the page that needs no install, figures/released/play.html: python tools/play.py amnesiac-8.pt

Both released decoders, one that forgot another digit, and the judge, with the script in play.html that runs them. That third
file is not released: python notebooks/run.py 03 forget=[8] makes one. Without it the page keeps the weights that it has, and
the rest is written anew.

Three decoders in half precision are 4.3 MB in base64. So weights are rounded to multiples of the steps below, which keeps
pixels within 1 of 255 and the judge's probabilities within 0.03; those that forgot are written as their differences from
the original; and what remains is compressed and written as base85: below 3 MB. tests/test_browser.py compares the page with
torch.
"""

import base64
import json
import re
import sys
import tomllib
import zlib
from pathlib import Path

import numpy as np
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))

from amnesia.models import CVAE, Classifier
from amnesia.storage.files import Saved
from amnesia.storage.stage import changes
from amnesia.storage.workspace import REPOSITORY

TEMPLATE, PAGE = Path(__file__).with_suffix(".html"), REPOSITORY / "figures" / "released" / "play.html"
FILES = [REPOSITORY / "checkpoints" / "released" / name for name in ("cvae.pt", "amnesiac-0.pt", "classifier.pt")]
HELD = re.compile('"application/json">(.*)</script>\n<script id="numbers" type="text/plain">(.*)</script>')  # by the page
DECODER_STEPS, JUDGE_STEPS = (1 / 8192, 1 / 4096, 1 / 2200), (1 / 600,) * 5  # layer by layer


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


def rounded(network, steps):
    """All weights as whole numbers of their layer's step, one array."""
    return np.concatenate([(values / step).round().numpy().ravel().astype(np.int64)
                           for pair, step in zip(layers(network), steps, strict=True) for values in pair])


def packed(numbers):
    """Whole numbers as text: sign last, low bytes before high bytes, deflate, base85. Raises ValueError above 16 bits."""
    unsigned = np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
    if unsigned.max() > 0xFFFF:
        raise ValueError("A weight is too large for 16 bits: choose larger steps in tools/play.py.")
    deflate = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)  # nothing repeats in weights
    planes = np.concatenate([unsigned & 0xFF, unsigned >> 8]).astype(np.uint8)
    return base64.b85encode(deflate.compress(planes.tobytes()) + deflate.flush()).decode()


def models(third):
    """What the page holds of the models, two texts: about them, and their numbers. third: the path of amnesiac-8.pt.

    Raises ValueError unless that was made as the released amnesiac-0.pt was, with forget=[8].
    """
    cvae, amnesiac, judge = (Saved(path) for path in FILES)
    third = Saved(third)
    if why := changes({**amnesiac.settings, "forget": [8], **amnesiac.lineage},
                      {**third.settings, **third.lineage}):
        raise ValueError(f"{third.path} is not the released {amnesiac.name} with another digit: {', '.join(why)}.")
    original, *after = (saved.build(CVAE, "cpu").decoder for saved in (cvae, amnesiac, third))
    judging = judge.build(Classifier, "cpu")
    about = {"digests": {saved.name: saved.digest for saved in (cvae, amnesiac, third, judge)},
             "forgotten": [saved.settings["forget"][0] for saved in (amnesiac, third)],
             "decoder": [[*weight.shape, step] for (weight, _), step in zip(layers(original), DECODER_STEPS, strict=True)],
             "judge": [[*weight.shape, step] for (weight, _), step in zip(layers(judging), JUDGE_STEPS, strict=True)]}
    before = rounded(original, DECODER_STEPS)
    edits = [rounded(decoder, DECODER_STEPS) - before for decoder in after]
    return json.dumps(about), packed(np.concatenate([before, *edits, rounded(judging, JUDGE_STEPS)]))


def home():
    """Where the page leads back to: the repository's address, once pyproject.toml says it; the README near it until then."""
    repository = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["amnesia"]["repository"]
    return f"https://github.com/{repository}" if repository else "../../README.md"


def write(third=None):
    """Writes the page, with the models that it has unless `third` is given. Raises ValueError above 3 MB."""
    about, numbers = models(third) if third else HELD.search(PAGE.read_text()).groups()
    page = TEMPLATE.read_text().replace("{{home}}", home()).replace("{{about}}", about).replace("{{numbers}}", numbers)
    if len(page.encode()) > 3_000_000:
        raise ValueError(f"play.html would have {len(page.encode()):,} bytes: choose larger steps in tools/play.py.")
    PAGE.write_text(page)


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
