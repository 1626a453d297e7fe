"""What a notebook shows: sample grids, GIFs, and words for those who do not see them. White background, grey digits, and a
palette that colour-blind readers can tell apart, whatever the reader's own settings of matplotlib."""

import html
import io
from base64 import b64encode

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


def subplots(*shape, **options):
    """plt.subplots for a picture of the notebooks: in STYLE, on matplotlib's defaults, whatever a reader's matplotlibrc says."""
    with plt.style.context(STYLE, after_reset=True):
        return plt.subplots(*shape, **options)


def tile(images):
    """Images (rows, columns, H, W) or (rows, columns, 3, H, W) as one picture, (rows * H, columns * W[, 3]) uint8.

    Floats are taken as [0, 1].
    """
    images = torch.as_tensor(images)
    if images.is_floating_point():
        images = (images * 255).round().byte()
    rows, columns = images.shape[:2]
    images = images.reshape(rows, columns, -1, *images.shape[-2:]).permute(0, 3, 1, 4, 2)        # (rows, H, columns, W, C)
    height, width = rows * images.shape[1], columns * images.shape[3]
    return images.reshape(height, width, -1).squeeze(2).cpu().numpy()


def few_greys(images):
    """Images in [0, 1] as uint8 in thirteen greys, which keep a moving picture small. The middle one is 0.5, so that what
    has become grey all over is shown as one grey."""
    return ((torch.as_tensor(images) * 12).round() * (255 / 12)).round().byte()


def show_tile(axis, images, title=None, row_labels=None):
    """Draws images, as of tile(), on a matplotlib axis, with a label beside each row."""
    axis.imshow(tile(images), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks(middles(len(images), images.shape[-2]) if row_labels is not None else [], row_labels)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title, fontsize=10)


def middles(n, side):
    """The middle of each of n tiles of so many pixels, (n,)."""
    return np.arange(n) * side + (side - 1) / 2


def name_classes(axis, names, places=None):
    """Writes the classes' names under a plot; long ones slant."""
    places = range(len(names)) if places is None else places
    slanting = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
    axis.set_xticks(places, names, **slanting)


def encoded(pages, kind, **options):
    """The bytes of a picture of this kind ("PNG", "GIF") from PIL pictures; of several, one that moves."""
    content = io.BytesIO()
    several = {"save_all": True, "append_images": pages[1:], "loop": 0} if len(pages) > 1 else {}
    pages[0].save(content, kind, optimize=True, **several, **options)
    return content.getvalue()


def few_colours(picture, greys=256):
    """A PIL picture in so many greys, or in 256 of its colours: a fraction of the size, and it hardly shows."""
    picture = picture.convert("RGB")
    grey = np.ptp(np.asarray(picture), axis=2).max() == 0
    return (picture.convert("L") if grey else picture).quantize(greys if grey else 256, dither=PIL.Image.Dither.NONE)


@plt.style.context(STYLE, after_reset=True)
def png(figure):
    """A matplotlib figure as the bytes of a PNG, twice the size that show() gives it; the figure is closed.

    Greys are kept as they are; a picture with colours is reduced to 256 of them, which halves the file and hardly shows.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", dpi=2 * figure.dpi)
    plt.close(figure)
    return encoded([few_colours(PIL.Image.open(drawn))], "PNG")


@plt.style.context(STYLE, after_reset=True)
def gif(frames, steps, row_labels, curves=None, marked=()):
    """Frames (n, rows, columns, ...), as of tile(), as an animated GIF's bytes, the step of each over it; the last one stays.

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
        digits.get_yticklabels()[row].set(color="white", weight="bold", bbox={"facecolor": "black", "boxstyle": "square,pad=0.2"})
    strips = {name: figure.add_subplot(grid[1, i], xticks=[], yticks=[]) for i, name in enumerate(curves)}
    for name, strip in strips.items():
        strip.plot(steps, curves[name], color="0.75")
        strip.plot(steps[0], curves[name][0], "o", color="black")

    pages = []
    for i, (frame, step) in enumerate(zip(frames, steps, strict=True)):
        digits.images[0].set_data(tile(frame))
        digits.set_title(f"step {step:,}", fontsize=10)
        for name, strip in strips.items():
            strip.lines[1].set_data([step], [curves[name][i]])
            strip.set_title(f"{name} {curves[name][i]:.2f}", fontsize=10)
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())[..., :3]
        drawn = drawn.copy() if frames.ndim == 6 else few_greys(drawn.mean(2) / 255).numpy()
        pages.append(PIL.Image.fromarray(drawn))
    return encoded(pages, "GIF", duration=[200] * (len(pages) - 1) + [3000])


def filmstrip(frames, steps, row):
    """One row of frames (n, rows, columns, ...) at ten of its steps (n,), from first to last, as a PNG's bytes.

    A column for each step, named over it, with that row's images one below the other.
    """
    shown = np.linspace(0, len(frames) - 1, 10).round().astype(int)
    images = torch.as_tensor(frames)[shown, row].transpose(0, 1)                # (columns, 10, ...)
    figure, axis = subplots(figsize=(5, 0.5 * len(images) + 0.3))
    show_tile(axis, images)
    axis.set_xticks(middles(10, images.shape[-1]), [f"{int(steps[i]):,}" for i in shown], fontsize=8)
    axis.tick_params(top=True, labeltop=True, labelbottom=False)
    axis.set_title("step", fontsize=8)
    return png(figure)


def moving_png(content):
    """The bytes of a GIF as those of a PNG that moves in every browser (APNG), with the same frames and times.

    What knows no moving PNG, as LaTeX, shows a PNG of the last frame, which a browser leaves out.
    """
    pages = PIL.ImageSequence.all_frames(PIL.Image.open(io.BytesIO(content)))
    few = [few_colours(page, greys=16) for page in pages]
    return encoded([few[-1], *few], "PNG", default_image=True, duration=[page.info["duration"] for page in pages])


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
