"""Sample grids, curves and GIFs. White background, grey digits, and a palette that colour-blind readers can tell apart."""

import io

import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
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


def png(figure):
    """A matplotlib figure as the bytes of a PNG; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def gif(frames, titles, row_labels=range(10), seconds=0.2):
    """Frames (moments, rows, columns, 28, 28) as the bytes of an animated GIF, a title over each; the last one stays."""
    pictures = []
    for frame, title in zip(frames, titles, strict=True):
        rows, columns = frame.shape[:2]
        figure, axis = plt.subplots(figsize=(0.35 * columns + 0.3, 0.35 * rows + 0.3), dpi=80, layout="constrained")
        show_tile(axis, frame, title, row_labels)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].mean(2))
        plt.close(figure)
    pictures = [(picture // 16 * 17).astype(np.uint8) for picture in pictures]  # 16 greys halve the file
    milliseconds = [1000 * seconds] * (len(pictures) - 1) + [3000]
    return imageio.imwrite("<bytes>", np.stack(pictures), extension=".gif", duration=milliseconds, loop=0)


def show(content, alt):
    """Shows the bytes of a PNG or GIF in the notebook, with `alt` as its text for screen readers.

    A GIF goes out under the type of a PNG: renderers that know only PNG then pass it on (nbconvert and GitHub leave
    image/gif out), and every browser goes by the content and plays it.
    """
    display(Image(data=content, format="png", alt=alt))
