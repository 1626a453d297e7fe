"""What a notebook shows: sample grids and GIFs. White background, grey digits, and a palette that colour-blind readers can
tell apart."""

import io

import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import torch
from IPython.display import Image, display

plt.style.use("tableau-colorblind10")
plt.rcParams.update({"figure.dpi": 90, "savefig.facecolor": "white", "figure.facecolor": "white",
                     "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def tile(images):
    """Images (rows, columns, 28, 28) as one picture, (rows * 28, columns * 28) uint8; floats are taken as [0, 1]."""
    images = torch.as_tensor(images)
    if images.is_floating_point():
        images = (images * 255).round().byte()
    rows, columns = images.shape[:2]
    return images.reshape(rows, columns, 28, 28).permute(0, 2, 1, 3).reshape(rows * 28, columns * 28).cpu().numpy()


def few_greys(images):
    """Images in [0, 1] as uint8 in thirteen greys, which keep a moving picture small. The middle one is 0.5, so that what
    has become grey all over is shown as one grey."""
    return ((torch.as_tensor(images) * 12).round() * (255 / 12)).round().byte()


def show_tile(axis, images, title=None, row_labels=None):
    """Draws images (rows, columns, 28, 28) on a matplotlib axis, with a label beside each row."""
    axis.imshow(tile(images), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    rows = len(images)
    axis.set_yticks(np.arange(rows) * 28 + 13.5 if row_labels is not None else [], row_labels)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title, fontsize=10)


def name_classes(axis, names, places=range(10)):
    """Writes the classes' names under a plot; long ones slant."""
    slanting = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
    axis.set_xticks(places, names, **slanting)


def png(figure):
    """A matplotlib figure as the bytes of a PNG, twice the size that show() gives it; the figure is closed.

    Greys are kept as they are; a picture with colours is reduced to 256 of them, which halves the file and hardly shows.
    """
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", dpi=2 * figure.dpi)
    plt.close(figure)
    picture = PIL.Image.open(drawn).convert("RGB")
    grey = np.ptp(np.asarray(picture), axis=2).max() == 0
    picture = picture.convert("L") if grey else picture.quantize(256, dither=PIL.Image.Dither.NONE)
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def gif(frames, moments, row_labels=range(10), seconds=0.2, curves=None):
    """Frames (n, rows, columns, 28, 28) as the bytes of an animated GIF, the step of each over it; the last one stays.

    moments: the steps, (n,); curves: {name: (n,)}, drawn against them side by side under the frames, each with a dot and
    its value at the step shown.
    """
    curves, (rows, columns) = curves or {}, frames.shape[1:3]
    heights = [0.35 * rows + 0.3, 0.75] if curves else [0.35 * rows + 0.3]
    figure = plt.figure(figsize=(0.35 * columns + 0.3, sum(heights)), dpi=80, layout="constrained")
    grid = figure.add_gridspec(len(heights), max(1, len(curves)), height_ratios=heights)
    digits = figure.add_subplot(grid[0, :])
    show_tile(digits, frames[0], " ", row_labels)
    strips = [figure.add_subplot(grid[1, i], xticks=[], yticks=[]) for i in range(len(curves))]
    for strip, values in zip(strips, curves.values(), strict=True):
        strip.plot(moments, values, color="0.75")
        strip.set_title(" ", fontsize=10)
    dots = [strip.plot(0, 0, "o", color="black")[0] for strip in strips]

    pictures = []
    for i, (frame, step) in enumerate(zip(frames, moments, strict=True)):
        digits.images[0].set_data(tile(frame))
        digits.set_title(f"step {step:,}", fontsize=10)
        for strip, dot, (name, values) in zip(strips, dots, curves.items(), strict=True):
            dot.set_data([step], [values[i]])
            strip.set_title(f"{name} {values[i]:.2f}", fontsize=10)
        figure.canvas.draw()
        pictures.append(few_greys(np.asarray(figure.canvas.buffer_rgba())[..., :3].mean(2) / 255).numpy())
    plt.close(figure)
    milliseconds = [1000 * seconds] * (len(pictures) - 1) + [3000]
    return imageio.imwrite("<bytes>", np.stack(pictures), extension=".gif", duration=milliseconds, loop=0)


def show(content, alt):
    """Shows the bytes of a PNG or GIF in the notebook, with `alt` as its text for screen readers.

    A GIF goes out under the type of a PNG: renderers that know only PNG then pass it on (nbconvert and GitHub leave
    image/gif out), and every browser goes by the content and plays it. A PNG is shown at half its size in pixels.
    """
    is_png = content.startswith(b"\x89PNG")
    display(Image(data=content, format="png", retina=is_png, metadata={"alt": alt}))  # Colab's IPython has no Image(alt=…)
