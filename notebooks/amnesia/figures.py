"""What a notebook shows: sample grids, GIFs, a panel with sliders, and words for those who do not see them. On white, in colours
that colour-blind readers can tell apart, whatever the reader's own settings of matplotlib."""

import html
import io
from base64 import b64encode

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display
from PIL import Image, ImageSequence

STYLE = ["tableau-colorblind10", {"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False,
                                  "legend.frameon": False}]
# In the page for screen readers only; where styles are stripped, as on GitHub, a caption.
UNSEEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"


def subplots(*shape, **options):
    """plt.subplots for a picture of the notebooks: in STYLE, on matplotlib's defaults, whatever a reader's matplotlibrc says."""
    with plt.style.context(STYLE, after_reset=True):
        return plt.subplots(*shape, **options)


def tile(images):
    """Images (rows, columns, [3,] H, W), uint8 or in [0, 1], as one picture, (rows * H, columns * W[, 3]) uint8."""
    images = torch.as_tensor(images)
    if images.is_floating_point():
        images = (images * 255).round().byte()
    whole = torch.cat([torch.cat([*row], -1) for row in images], -2).cpu().numpy()
    return whole if whole.ndim == 2 else np.moveaxis(whole, 0, 2)


def few_greys(images):
    """Images in [0, 1] as uint8 in thirteen greys, which keep a moving picture small; what is grey all over is 0.5, one grey."""
    return ((torch.as_tensor(images) * 12).round() * (255 / 12)).round().byte()


def show_tile(axis, images, title="", row_labels=(), column_labels=()):
    """Draws images, as of tile(), on a matplotlib axis, with labels beside the rows and under the columns."""
    height, width = images.shape[-2:]
    axis.imshow(tile(images), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks(np.arange(len(column_labels)) * width + (width - 1) / 2, column_labels, fontsize=8)
    axis.set_yticks(np.arange(len(row_labels)) * height + (height - 1) / 2, row_labels)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=10)


def name_classes(axis, names, places=None):
    """Writes the classes' names under a plot; long ones slant."""
    slanting = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
    axis.set_xticks(range(len(names)) if places is None else places, names, **slanting)


def drawn(figure, **options):
    """A matplotlib figure as a PIL picture; the figure is closed."""
    content = io.BytesIO()
    figure.savefig(content, format="png", **options)
    plt.close(figure)
    return Image.open(content)


def encoded(pages, kind, **options):
    """The bytes of a picture of this kind ("PNG", "GIF") from PIL pictures, of 256 colours at most; of several, one that moves.

    So few colours are a fraction of the size, and it hardly shows: of greys there are no more.
    """
    first, *others = [page.convert("RGB").quantize(256, dither=Image.Dither.NONE) for page in pages]
    content = io.BytesIO()
    first.save(content, kind, optimize=True, save_all=True, append_images=others, loop=0, **options)
    return content.getvalue()


@plt.style.context(STYLE, after_reset=True)
def png(figure):
    """A matplotlib figure as the bytes of a PNG, twice the size that show() gives it; the figure is closed."""
    return encoded([drawn(figure, bbox_inches="tight", dpi=2 * figure.dpi)], "PNG")


@plt.style.context(STYLE, after_reset=True)
def gif(frames, steps, row_labels, curves, marked=()):
    """Frames (n, rows, columns, ...), as of tile(), as an animated GIF's bytes, the step of each over it; the last one stays.

    steps: (n,); curves: {name: (n,)}, drawn against them under the frames, each with a dot and its value at the step shown;
    marked: the rows to look at, whose labels stand white on black.
    """
    rows, columns = frames.shape[1:3]
    heights = [0.35 * rows + 0.3, 0.75]
    thirteen = few_greys(torch.arange(256) / 255).tolist()
    pages = []
    for i, (frame, step) in enumerate(zip(frames, steps, strict=True)):
        figure, axes = plt.subplot_mosaic([["frames"] * len(curves), [*curves]], height_ratios=heights, layout="constrained",
                                          figsize=(0.35 * columns + 0.3, sum(heights)), dpi=80)
        show_tile(axes["frames"], frame, f"step {step:,}", row_labels)
        for row in marked:
            axes["frames"].get_yticklabels()[row].set(color="white", weight="bold", bbox={"facecolor": "black", "pad": 2})
        for name, values in curves.items():
            axes[name].plot(steps, values.tolist(), color="0.75")
            axes[name].plot(step, values[i].item(), "o", color="black")
            axes[name].set_title(f"{name} {values[i]:.2f}", fontsize=10)
            axes[name].set(xticks=[], yticks=[])
        page = drawn(figure)
        pages.append(page if frames.ndim == 6 else page.convert("L").point(thirteen))
    return encoded(pages, "GIF", duration=[200] * (len(pages) - 1) + [3000])


def show(content, alt):
    """Shows the bytes of a PNG or GIF in the notebook, with `alt` as its text for screen readers.

    The picture goes out as a PNG, the one kind that every renderer passes on (nbconvert leaves image/gif out; a GIF under a
    PNG's name stops LaTeX); a PNG that stands still at half its size in pixels. One that moves, with the GIF's frames and
    times, does so in every browser (APNG); what knows none, as LaTeX, shows the frame before them, which is the last one
    again. Each renderer takes the text from another place, and JupyterLab and nbconvert's usual template from none, so it also
    follows the picture as words of its own.
    """
    picture, metadata = Image.open(io.BytesIO(content)), {"alt": alt}           # the latter taken by nbconvert's classic template
    if picture.format == "GIF":
        pages = ImageSequence.all_frames(picture)
        times = [page.info["duration"] for page in pages]
        content = encoded([pages[-1], *pages], "PNG", default_image=True, duration=times)
    else:
        metadata |= {"width": picture.width // 2, "height": picture.height // 2}
    display({"image/png": b64encode(content).decode(), "text/plain": alt},      # the latter taken by VS Code
            metadata={"image/png": metadata}, raw=True)
    display({"text/html": f'<p style="{UNSEEN}">{html.escape(alt)}</p>'}, raw=True)


def panel(draw, titles, z, classes):
    """Buttons for the label, a slider for each number in the latent `z`, and the pictures that draw(label, z) makes of them.

    draw: images (len(titles), H, W) or (len(titles), 3, H, W) in [0, 1] for a label and a latent; classes: their names.
    Returns an ipywidgets box.
    """
    import ipywidgets as widgets  # takes a moment that only those who play need to wait

    label = widgets.ToggleButtons(options=[(name, label) for label, name in enumerate(classes)], style={"button_width": "auto"})
    sliders = {f"z{i}": widgets.FloatSlider(value, min=-5, max=5, description=f"z{i}") for i, value in enumerate(z.tolist(), 1)}
    pictures = [widgets.Image(width=224) for _ in titles]

    def update(label, **latent):
        for picture, image in zip(pictures, draw(label, torch.tensor([*latent.values()])), strict=True):
            enlarged = tile(image[None, None]).repeat(8, 0).repeat(8, 1)
            picture.value = encoded([Image.fromarray(enlarged)], "PNG")

    said = widgets.interactive_output(update, {"label": label, **sliders})      # an error, if there is one
    columns = [widgets.VBox([widgets.Label(title), picture]) for title, picture in zip(titles, pictures, strict=True)]
    return widgets.VBox([label, widgets.HBox([widgets.VBox([*sliders.values()]), *columns]), said])


def play(draw, titles, z, classes):
    """Shows the panel if someone can move its sliders, and nothing otherwise: a saved notebook then holds no widgets.

    papermill and nbconvert say in each request that nobody is there to answer an input(); so nobody is there to play.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel and kernel.get_parent().get("content", {}).get("allow_stdin"):
        display(panel(draw, titles, z, classes))
