"""What a notebook shows: sample grids, GIFs, and words for those who do not see them. White background, grey digits, and a
palette that colour-blind readers can tell apart, whatever the reader's own settings of matplotlib."""

import html
import io
from base64 import b64encode
from contextlib import ExitStack

import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import PIL.ImageSequence
import torch
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE = ["tableau-colorblind10", {"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False,
                                  "legend.frameon": False}]
# In the page for screen readers only; where styles are stripped, as on GitHub, a caption.
UNSEEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"
drawing = ExitStack()  # holds the reader's own settings of matplotlib while a picture is drawn in ours


def style():
    """A context in which figures start from matplotlib's defaults and STYLE; afterwards the reader's settings are back."""
    return plt.style.context(STYLE, after_reset=True)


def subplots(*shape, **options):
    """plt.subplots for a picture of the notebooks: in their own style, whatever a matplotlibrc or a startup file says.

    All that is drawn from here on is in that style, until png() makes the picture. Then the reader's own settings are back,
    and figures of plt's own look as the reader wants them.
    """
    drawing.enter_context(style())
    return plt.subplots(*shape, **options)


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
    drawing.close()
    picture = PIL.Image.open(drawn).convert("RGB")
    grey = np.ptp(np.asarray(picture), axis=2).max() == 0
    picture = picture.convert("L") if grey else picture.quantize(256, dither=PIL.Image.Dither.NONE)
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


@style()
def gif(frames, steps, row_labels=range(10), curves=None, marked=()):
    """Frames (n, rows, columns, 28, 28) as the bytes of an animated GIF, the step of each over it; the last one stays.

    steps: (n,); curves: {name: (n,)}, drawn against them side by side under the frames, each with a dot and
    its value at the step shown; marked: the rows to look at, whose labels stand white on black.
    """
    curves = {name: torch.as_tensor(values).tolist() for name, values in (curves or {}).items()}
    rows, columns = frames.shape[1:3]
    heights = [0.35 * rows + 0.3, 0.75] if curves else [0.35 * rows + 0.3]
    figure = Figure(figsize=(0.35 * columns + 0.3, sum(heights)), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)            # whatever the backend: those of pdf and svg have no pixels to read
    grid = figure.add_gridspec(len(heights), max(1, len(curves)), height_ratios=heights)
    digits = figure.add_subplot(grid[0, :])
    show_tile(digits, frames[0], " ", row_labels)
    for row in marked:
        digits.get_yticklabels()[row].set(color="white", weight="bold",
                                          bbox={"facecolor": "black", "boxstyle": "square,pad=0.2"})
    strips = [figure.add_subplot(grid[1, i], xticks=[], yticks=[]) for i in range(len(curves))]
    for strip, values in zip(strips, curves.values(), strict=True):
        strip.plot(steps, values, color="0.75")
        strip.set_title(" ", fontsize=10)
    dots = [strip.plot(steps[:1], values[:1], "o", color="black")[0]
            for strip, values in zip(strips, curves.values(), strict=True)]

    pictures = []
    for i, (frame, step) in enumerate(zip(frames, steps, strict=True)):
        digits.images[0].set_data(tile(frame))
        digits.set_title(f"step {step:,}", fontsize=10)
        for strip, dot, (name, values) in zip(strips, dots, curves.items(), strict=True):
            dot.set_data([step], [values[i]])
            strip.set_title(f"{name} {values[i]:.2f}", fontsize=10)
        canvas.draw()
        pictures.append(few_greys(np.asarray(canvas.buffer_rgba())[..., :3].mean(2) / 255).numpy())
    milliseconds = [200] * (len(pictures) - 1) + [3000]
    return imageio.imwrite("<bytes>", np.stack(pictures), extension=".gif", duration=milliseconds, loop=0)


def filmstrip(frames, steps, row):
    """One row of frames (n, rows, columns, 28, 28) at ten of its steps (n,), from first to last, as a PNG's bytes.

    A column for each step, named over it, with that row's images one below the other.
    """
    shown = np.linspace(0, len(frames) - 1, 10).round().astype(int)
    images = torch.as_tensor(frames)[shown, row].transpose(0, 1)                # (columns, 10, 28, 28)
    figure, axis = subplots(figsize=(5, 0.5 * len(images) + 0.3))
    show_tile(axis, images)
    axis.set_xticks(28 * np.arange(10) + 13.5, [f"{int(steps[i]):,}" for i in shown], fontsize=8)
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel("step", fontsize=8)
    return png(figure)


def moving_png(content):
    """The bytes of a GIF as those of a PNG that moves in every browser (APNG), with the same frames and times.

    What knows no moving PNG, as LaTeX, shows a PNG of the last frame, which a browser leaves out.
    """
    pages, moving = PIL.ImageSequence.all_frames(PIL.Image.open(io.BytesIO(content))), io.BytesIO()
    greys = [page.convert("L").quantize(16, dither=PIL.Image.Dither.NONE) for page in pages]
    greys[-1].save(moving, "PNG", save_all=True, default_image=True, append_images=greys, loop=0, optimize=True,
                   duration=[page.info["duration"] for page in pages])
    return moving.getvalue()


def show(content, alt):
    """Shows the bytes of a PNG or GIF in the notebook, with `alt` as its text for screen readers.

    The picture goes out as a PNG, the one kind that every renderer passes on (nbconvert leaves image/gif out; a GIF under a
    PNG's name stops LaTeX); a PNG that stands still at half its size in pixels. Each renderer takes the text from another
    place, and JupyterLab and nbconvert's usual template from none, so it also follows the picture as words of its own.
    """
    metadata = {"alt": alt}                                                     # taken by nbconvert's classic template
    if content.startswith(b"GIF8"):
        content = moving_png(content)
    else:
        width, height = PIL.Image.open(io.BytesIO(content)).size
        metadata |= {"width": width // 2, "height": height // 2}
    display({"image/png": b64encode(content).decode(), "text/plain": alt},      # the latter taken by VS Code
            metadata={"image/png": metadata}, raw=True)
    display({"text/html": f'<p style="{UNSEEN}">{html.escape(alt)}</p>'}, raw=True)
