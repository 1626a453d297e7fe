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
from matplotlib.backends.backend_agg import FigureCanvasAgg
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
    images = images.reshape(*images.shape[:2], -1, *images.shape[-2:]).permute(0, 3, 1, 4, 2)    # (rows, H, columns, W, C)
    return images.flatten(2, 3).flatten(0, 1).squeeze(2).cpu().numpy()


def few_greys(images):
    """Images in [0, 1] as uint8 in thirteen greys, which keep a moving picture small; what is grey all over is 0.5, one grey."""
    return ((torch.as_tensor(images) * 12).round() * (255 / 12)).round().byte()


def show_tile(axis, images, title="", row_labels=None):
    """Draws images, as of tile(), on a matplotlib axis, with a label beside each row."""
    axis.imshow(tile(images), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks(middles(len(images), images.shape[-2]) if row_labels is not None else [], row_labels)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
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
    """The bytes of a picture of this kind ("PNG", "GIF") from PIL pictures, of 256 colours at most; of several, one that moves.

    So few colours are a fraction of the size, and it hardly shows: of greys there are no more.
    """
    pages = [page.convert("RGB").quantize(256, dither=Image.Dither.NONE) for page in pages]
    content = io.BytesIO()
    pages[0].save(content, kind, optimize=True, save_all=True, append_images=pages[1:], loop=0, **options)
    return content.getvalue()


@plt.style.context(STYLE, after_reset=True)
def png(figure):
    """A matplotlib figure as the bytes of a PNG, twice the size that show() gives it; the figure is closed."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", dpi=2 * figure.dpi)
    plt.close(figure)
    return encoded([Image.open(drawn)], "PNG")


@plt.style.context(STYLE, after_reset=True)
def gif(frames, steps, row_labels, curves=None, marked=()):
    """Frames (n, rows, columns, ...), as of tile(), as an animated GIF's bytes, the step of each over it; the last one stays.

    steps: (n,); curves: {name: (n,)}, drawn against them under the frames, each with a dot and its value at the step shown;
    marked: the rows to look at, whose labels stand white on black.
    """
    curves = {name: torch.as_tensor(values).tolist() for name, values in (curves or {}).items()}
    rows, columns = frames.shape[1:3]
    heights = [0.35 * rows + 0.3, 0.75] if curves else [0.35 * rows + 0.3]
    mosaic = [["frames"] * len(curves), [*curves]] if curves else [["frames"]]
    pages = []
    for i, (frame, step) in enumerate(zip(frames, steps, strict=True)):
        figure = plt.Figure(figsize=(0.35 * columns + 0.3, sum(heights)), dpi=80, layout="constrained")
        canvas = FigureCanvasAgg(figure)        # whatever the backend: those of pdf and svg have no pixels to read
        strips = figure.subplot_mosaic(mosaic, height_ratios=heights)
        grid = strips.pop("frames")
        show_tile(grid, frame, f"step {step:,}", row_labels)
        for row in marked:
            grid.get_yticklabels()[row].set(color="white", weight="bold", bbox={"facecolor": "black", "pad": 2})
        for name, strip in strips.items():
            strip.plot(steps, curves[name], color="0.75")
            strip.plot(step, curves[name][i], "o", color="black")
            strip.set_title(f"{name} {curves[name][i]:.2f}", fontsize=10)
            strip.set(xticks=[], yticks=[])
        canvas.draw()
        drawn = np.array(canvas.buffer_rgba())[..., :3]
        pages.append(Image.fromarray(drawn if frames.ndim == 6 else few_greys(drawn.mean(2) / 255).numpy()))
    return encoded(pages, "GIF", duration=[200] * (len(pages) - 1) + [3000])


def filmstrip(frames, steps, row):
    """One row of frames (n, rows, columns, ...) at ten of its steps (n,), from first to last, as a PNG's bytes.

    A column for each step, named under it, with that row's images one below the other.
    """
    shown = np.linspace(0, len(frames) - 1, 10).round().astype(int)
    images = torch.as_tensor(frames)[shown, row].transpose(0, 1)                # (columns, 10, ...)
    figure, axis = subplots(figsize=(5, 0.5 * len(images) + 0.3))
    show_tile(axis, images)
    axis.set_xticks(middles(10, images.shape[-1]), [f"{int(steps[i]):,}" for i in shown], fontsize=8)
    axis.set_xlabel("step", fontsize=8)
    return png(figure)


def moving_png(content):
    """The bytes of a GIF as those of a PNG that moves in every browser (APNG), with the same frames and times.

    What knows no moving PNG, as LaTeX, shows a PNG of the last frame, which a browser leaves out.
    """
    pages = ImageSequence.all_frames(Image.open(io.BytesIO(content)))
    return encoded([pages[-1], *pages], "PNG", default_image=True, duration=[page.info["duration"] for page in pages])


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
        width, height = Image.open(io.BytesIO(content)).size
        metadata |= {"width": width // 2, "height": height // 2}
    display({"image/png": b64encode(content).decode(), "text/plain": alt},      # the latter taken by VS Code
            metadata={"image/png": metadata}, raw=True)
    display({"text/html": f'<p style="{UNSEEN}">{html.escape(alt)}</p>'}, raw=True)


def panel(draw, titles, z, classes):
    """Buttons for the label, a slider for each number in the latent `z`, and the pictures that draw(label, z) makes of them.

    draw: images (len(titles), H, W) or (len(titles), 3, H, W) in [0, 1] for a label and a latent; classes: their names.
    Returns an ipywidgets box. Raises ImportError without ipywidgets.
    """
    import ipywidgets as widgets  # the notebooks run without it, and then show no panel

    label = widgets.ToggleButtons(options=[(name, label) for label, name in enumerate(classes)], description="label",
                                  style={"button_width": f"{18 + 9 * max(2, *map(len, classes))}px"})
    sliders = [widgets.FloatSlider(value, min=-5, max=5, step=0.1, description=f"z{i + 1}", orientation="vertical",
                                   readout=False, layout={"width": "45px", "height": "130px"})
               for i, value in enumerate(z.tolist())]
    pictures = [widgets.Image(format="png", width=224, height=224) for _ in titles]

    def update(_=None):
        latent = torch.tensor([slider.value for slider in sliders])
        for picture, image in zip(pictures, draw(label.value, latent), strict=True):
            enlarged = tile(image[None, None]).repeat(8, 0).repeat(8, 1)
            picture.value = encoded([Image.fromarray(enlarged)], "PNG")

    for control in (label, *sliders):
        control.observe(update, "value")
    update()
    columns = [widgets.VBox([widgets.Label(title), picture]) for title, picture in zip(titles, pictures, strict=True)]
    return widgets.VBox([label, widgets.HBox(sliders), widgets.HBox(columns)])


def play(draw, titles, z, classes):
    """Shows the panel if someone can move its sliders, and nothing otherwise: a saved notebook then holds no widgets.

    papermill and nbconvert say in each request that nobody is there to answer an input(); so nobody is there to play.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel and kernel.get_parent().get("content", {}).get("allow_stdin"):
        try:
            display(panel(draw, titles, z, classes))
        except ImportError:
            print("For a panel to play with: pip install ipywidgets, and run this cell again.")
