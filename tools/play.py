"""Writes the page that needs no install, figures/released/play.html: python tools/play.py

Both released decoders and the judge, with the script in play.html that runs them. Two decoders in half precision are 2.9 MB
in base64, and 2.3 MB if compressed first. So weights are rounded to multiples of the steps below, which keeps pixels within
1 of 255 and the judge's probabilities within 0.03; the amnesiac is written as its difference from the original; and what
remains is compressed and written as base85: just below 2 MB. tests/test_browser.py compares the page with torch.
"""

import base64
import json
import sys
import zlib
from pathlib import Path

import numpy as np
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))

from amnesia.models import CVAE, Classifier
from amnesia.storage.files import Saved
from amnesia.storage.workspace import REPOSITORY

TEMPLATE, PAGE = Path(__file__).with_suffix(".html"), REPOSITORY / "figures" / "released" / "play.html"
FILES = [REPOSITORY / "checkpoints" / "released" / name for name in ("cvae.pt", "amnesiac-0.pt", "classifier.pt")]
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


def write():
    """Writes the page. Raises ValueError if it would be larger than 2 MB."""
    cvae, amnesiac, judge = (Saved(path) for path in FILES)
    original, after = (saved.build(CVAE, "cpu").decoder for saved in (cvae, amnesiac))
    judging = judge.build(Classifier, "cpu")
    about = {"digests": {saved.name: saved.digest for saved in (cvae, amnesiac, judge)},
             "forgotten": amnesiac.settings["forget"][0],
             "decoder": [[*weight.shape, step] for (weight, _), step in zip(layers(original), DECODER_STEPS, strict=True)],
             "judge": [[*weight.shape, step] for (weight, _), step in zip(layers(judging), JUDGE_STEPS, strict=True)]}
    before = rounded(original, DECODER_STEPS)
    numbers = np.concatenate([before, rounded(after, DECODER_STEPS) - before, rounded(judging, JUDGE_STEPS)])
    page = TEMPLATE.read_text().replace("{{about}}", json.dumps(about)).replace("{{numbers}}", packed(numbers))
    if len(page.encode()) > 2_000_000:
        raise ValueError(f"play.html would have {len(page.encode()):,} bytes: choose larger steps in tools/play.py.")
    PAGE.write_text(page)


if __name__ == "__main__":
    write()
