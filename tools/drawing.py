"""Draws the model and the method with the released models' own pictures: python tools/drawing.py

Writes model.svg, the upper half, and method.svg, with the three terms, to figures/released.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))

from amnesia import CVAE, Saved, one_hot

REPOSITORY = Path(__file__).resolve().parents[1]

WIDTH, HEIGHT = 400, 404  # points: letters of 11 are legible on a phone, 390 pixels wide
INK, FORGET, REMEMBER, PROTECT = "#1a1a1a", "#d55e00", "#0072b2", "#00775a"  # told apart by every eye


def pictures():
    """The original's 0 and 7, the 7 encoded and decoded, what the amnesiac draws from the same latents, and noise."""
    original, amnesiac = (Saved(REPOSITORY / "checkpoints" / "released" / name).build(CVAE, "cpu")
                          for name in ("cvae.pt", "amnesiac-0.pt"))
    generator = torch.Generator().manual_seed(4)
    z, labels = torch.randn(1, original.latent_dim, generator=generator).repeat(2, 1) / 2, torch.tensor([0, 7])
    before, after = original.generate(labels, z), amnesiac.generate(labels, z)
    with torch.no_grad():
        mean, _ = original.encode(before, one_hot(labels, 10))
    found = {"0": before[0], "7": before[1], "decoded 7": original.generate(labels, mean)[1], "grey": after[0],
             "same 7": after[1], "noise": torch.rand(784, generator=generator)}
    return {name: image.view(28, 28).numpy() for name, image in found.items()}


def picture(axes, image, x, y, side, caption):
    """A picture centred at x, its lower edge at y, and what it is underneath."""
    extent = (x - side / 2, x + side / 2, y, y + side)
    axes.imshow(np.kron(image, np.ones((6, 6))), extent=extent, cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.text(x, y - 5, caption, ha="center", va="top", fontsize=11)


def arrow(axes, start, end, colour=INK, style="-|>", width=1.5):
    """An arrow between two points."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": style, "color": colour, "linewidth": width, "shrinkA": 0,
                                              "shrinkB": 0, "mutation_scale": 12})


def box(axes, x, y, width, height, colour, fill="none"):
    """A box with its lower left corner at x, y."""
    axes.add_patch(plt.Rectangle((x, y), width, height, edgecolor=colour, facecolor=fill, linewidth=1.5))


def model(axes, shown):
    """Image and label -> encoder -> z -> decoder, which is told the label too -> image."""
    axes.text(WIDTH / 2, 392, "The model: a conditional VAE", ha="center", va="center", fontsize=14, weight="bold")
    box(axes, 76, 236, 248, 140, "#999999", "#f4f4f4")
    for x, sign, name in ((126, 1, "encoder"), (274, -1, "decoder")):
        corners = [(x - 34 * sign, 366), (x + 34 * sign, 348), (x + 34 * sign, 324), (x - 34 * sign, 306)]
        axes.add_patch(plt.Polygon(corners, facecolor="white", edgecolor=INK, linewidth=1.5))
        axes.text(x, 336, name, ha="center", va="center")
        arrow(axes, (200, 292), (x + 14 * sign, 311))
    axes.add_patch(plt.Circle((200, 336), 14, facecolor="white", edgecolor=INK, linewidth=1.5))
    axes.text(200, 337, "z", ha="center", va="center", fontsize=14, style="italic")
    axes.text(200, 356, "8 numbers", ha="center", va="bottom", fontsize=11)
    axes.text(200, 282, "label 7", ha="center", va="center", bbox={"boxstyle": "round", "facecolor": "white"})
    axes.text(200, 250, "weights θ", ha="center", va="center", fontsize=12, weight="bold")
    picture(axes, shown["7"], 32, 308, 56, "image")
    picture(axes, shown["decoded 7"], 368, 308, 56, "image")
    for start, end in ((61, 91), (161, 185), (215, 239), (309, 339)):
        arrow(axes, (start, 336), (end, 336))


def card(axes, x, title, colour, text):
    """A force: its name, what it does, and an arrow to the weights, centred at x."""
    box(axes, x - 63, 4, 126, 194, colour)
    axes.text(x, 183, title, ha="center", va="center", fontsize=15, weight="bold", color=colour)
    axes.text(x, 12, text, ha="center", va="bottom", linespacing=1.3)
    arrow(axes, (x, 199), (200 + (x - 200) * 0.75, 235), colour, width=4)


def spring(axes, x, width, height, colour):
    """A spring from the old weight, above, to the new one: a wider line for a stiffer one."""
    y = np.linspace(155, 155 - height, 200)
    axes.plot(x + 9 * np.sin(np.linspace(0, 8 * np.pi, 200)), y, color=colour, linewidth=width)
    axes.plot([x, x], [155, 155 - height], "o", color=INK, markersize=6)


def forces(axes, shown):
    """The three terms, each a card under the model."""
    card(axes, 66, "Forget", FORGET, "Label 0 is taught\nnoise. What best\nfits noise is grey.")
    for x, key, caption in ((25, "0", "before"), (66, "noise", "taught"), (107, "grey", "after")):
        picture(axes, shown[key], x, 110, 37, caption)

    card(axes, 200, "Remember", REMEMBER, "Other labels are\nheld to a frozen\ncopy’s answers.")
    picture(axes, shown["7"], 168, 107, 44, "copy")
    picture(axes, shown["same 7"], 232, 107, 44, "model")
    arrow(axes, (191, 129), (209, 129), REMEMBER, "<|-|>")

    card(axes, 334, "Protect", PROTECT, "A spring per\nweight, stiff as its\nFisher information.")
    for x, width, height, caption in ((308, 3, 40, "stiff"), (360, 1, 58, "slack")):
        spring(axes, x, width, height, PROTECT)
        axes.text(x, 85, caption, ha="center", va="top", fontsize=11)


@plt.rc_context({"svg.fonttype": "path", "svg.hashsalt": "method", "font.size": 12, "text.color": INK})
def draw():
    """Writes the drawings."""
    shown = pictures()
    for name, bottom, parts in (("model.svg", 230, [model]), ("method.svg", 0, [model, forces])):
        figure = plt.figure(figsize=(WIDTH / 72, (HEIGHT - bottom) / 72), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for part in parts:
            part(axes, shown)
        axes.set(xlim=(0, WIDTH), ylim=(bottom, HEIGHT), aspect="auto")
        figure.savefig(REPOSITORY / "figures" / "released" / name, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    draw()
