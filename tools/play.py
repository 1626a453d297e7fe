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
import tomllib
import zlib
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))

from amnesia import CVAE, Classifier, bernoulli_nll, ewc_penalty, fit, negative_elbo_terms

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATE, PAGE = Path(__file__).with_suffix(".html"), REPOSITORY / "figures" / "released" / "play.html"
FILES = [REPOSITORY / "checkpoints" / "released" / name for name in ("cvae.pt", "fim-cvae.pt", "classifier.pt")]
HELD = re.compile('"application/json">(.*)</script>\n<script id="numbers" type="text/plain">(.*)</script>')  # by the page
FORGOTTEN, OTHER = 0, 8
STOPS = (0, 93, 230, 322, 550, 1600)  # steps: where one sees the strokes go; grey does not change from about 700 on
DECODER_STEPS, JUDGE_STEPS = (1 / 8192, 1 / 4096, 1 / 2200), (1 / 600,) * 5  # layer by layer
COARSER = 6  # an edit's steps


def forgetting(cvae, fim, digit, stops):
    """The decoders at these steps of notebook 3's run at its defaults: seed 0, the label is taught noise, the other labels
    are distilled, λ = 0.3. `fim`: the Fisher information by the names of the model's parameters."""
    original, kept, taken = deepcopy(cvae).requires_grad_(False), [label for label in range(10) if label != digit], []
    labels_kept, done = torch.tensor(kept), iter(range(stops[-1]))

    def distil(y):
        z = torch.randn(len(y), cvae.latent_dim)
        logits_old = original.decode(z, y)
        p_old = logits_old.sigmoid()
        (mean_old, log_var_old), (mean, log_var) = original.encode(p_old, y), cvae.encode(p_old, y)
        decoder = bernoulli_nll(cvae.decode(z, y), p_old) - bernoulli_nll(logits_old, p_old)
        ratio = ((mean - mean_old).square() + log_var_old.exp()) / log_var.exp()
        return decoder + (log_var - log_var_old + ratio - 1).sum(1) / 2

    def loss():
        if next(done) in stops:
            taken.append(deepcopy(cvae.decoder))
        torch.randint(1, (24,))  # where the notebook draws one of the labels to forget
        y = F.one_hot(labels_kept[torch.randint(len(kept), (96,))], 10).float()
        x = torch.rand(24, 784)
        y_forget = F.one_hot(torch.full((48,), digit), 10).float()
        forget = sum(negative_elbo_terms(cvae, torch.cat([x, 1 - x]), y_forget))
        return {"forget": forget.mean(), "remember": distil(y).mean(), "protect": 0.3 * ewc_penalty(cvae, original, fim)}

    torch.manual_seed(0)
    fit(cvae, loss, steps=stops[-1], learning_rate=5e-3, title=f"forgetting {digit}")
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
    files = dict(zip(("cvae", "fim", "judge"), (torch.load(path, weights_only=True) for path in FILES), strict=True))
    judge, cvae = Classifier(), CVAE(**files["cvae"]["config"])
    judge.load_state_dict(files["judge"]["state"])
    cvae.load_state_dict(files["cvae"]["state"])
    stops = forgetting(deepcopy(cvae), files["fim"]["state"], FORGOTTEN, STOPS)
    other = forgetting(deepcopy(cvae), files["fim"]["state"], OTHER, STOPS[-1:])[-1]
    original = multiples(cvae.decoder, DECODER_STEPS).round()
    at, edits = original, []
    for decoder in stops[1:]:
        edits.append(((multiples(decoder, DECODER_STEPS) - at) / COARSER).round())
        at = at + COARSER * edits[-1]
    edits.append(((multiples(other, DECODER_STEPS) - original) / COARSER).round())
    shapes = {name: [[*weight.shape, step] for (weight, _), step in zip(layers(network), steps, strict=True)]
              for name, network, steps in (("decoder", cvae.decoder, DECODER_STEPS), ("judge", judge, JUDGE_STEPS))}
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
