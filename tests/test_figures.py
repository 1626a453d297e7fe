"""Pictures: GIFs with curves under them, every grey kept, and texts for those who do not see them."""

import base64
import io
import itertools

import imageio.v3 as imageio
import matplotlib.pyplot as plt
import nbconvert
import nbformat
import numpy as np
import PIL.Image
import PIL.ImageSequence
import torch
from bs4 import BeautifulSoup

from amnesia import few_greys, figures, filmstrip, gif, png, show, show_tile, subplots


def test_a_gif_shows_its_curves_under_the_frames():
    frames = torch.zeros(3, 10, 8, 28, 28, dtype=torch.uint8)
    plain, curved = (imageio.imread(io.BytesIO(gif(frames, [0, 2, 30], range(10), curves=curves)), index=None)
                     for curves in (None, {"P": torch.tensor([1.0, 0.5, 0.0]), "H": torch.tensor([0.0, 2.0, 1.0])}))
    height = plain.shape[1]
    assert len(curved) == 3 and curved.shape[1] > height and curved.shape[2] == plain.shape[2]
    assert all((before != after)[height:].any() for before, after in itertools.pairwise(curved))  # the dot moves
    _, before, after = curved[:, height:, :curved.shape[2] // 2]
    columns = (before != after).any((0, 2)).nonzero()[0]
    assert np.ptp(columns) > 0.8 * before.shape[1]                      # of P's dot, from step 2 to step 30


def test_a_strip_shows_one_row_from_the_first_step_to_the_last():
    """Thirty frames, each one grey, and a row that is told from the others; ten columns, an image of each below another."""
    frames = torch.arange(30, dtype=torch.uint8)[:, None, None, None, None].expand(30, 10, 3, 28, 28).clone()
    frames[:, 4] += 100
    steps = [step ** 2 for step in range(30)]
    picture = np.asarray(PIL.Image.open(io.BytesIO(filmstrip(frames, steps, 4))).convert("L"))
    greys = [grey for grey in range(256) if 10_000 < (picture == grey).sum() < 40_000]      # as many as three images have
    np.testing.assert_allclose(greys, 100 + np.linspace(0, 29, 10).round(), atol=1)
    assert picture.shape[1] > 2 * picture.shape[0] and len(filmstrip(frames, steps, 4)) < 20_000


def test_pictures_are_white_and_gifs_the_same_whatever_the_reader_has_set_and_so_are_the_settings_afterwards():
    frames = torch.rand(2, 10, 8, 28, 28, generator=torch.Generator().manual_seed(0))

    def drawn():
        figure, axis = subplots()
        axis.plot([0, 1], [1, 0])
        axis.set_title("title")
        return imageio.imread(png(figure)), gif(frames, [0, 1], range(10))

    before = dict(plt.rcParams)
    plain, moving = drawn()
    assert plt.rcParams == before
    with plt.style.context("dark_background"), plt.rc_context({"savefig.facecolor": "black", "lines.linewidth": 9,
                                                               "image.origin": "lower", "font.size": 30}):
        plt.switch_backend("pdf")
        mine = dict(plt.rcParams)
        picture, same = drawn()
        assert same == moving and plt.rcParams == mine
    plt.switch_backend("agg")
    assert (picture[[0, -1]] == 255).all() and (picture < 100).any() and (plain[[0, -1]] == 255).all()


def test_what_is_grey_all_over_is_shown_as_one_grey():
    """A spread of half a grey level to each side of 0.5, as a forgotten digit has, in a snapshot and in the GIF itself."""
    grey = 0.5 + (torch.rand(1, 10, 8, 28, 28, generator=torch.Generator().manual_seed(0)) - 0.5) / 255
    plain = (grey * 255).round().byte()
    assert plain.unique().tolist() == [127, 128] and few_greys(grey).unique().tolist() == [128]
    for frames in (few_greys(grey), plain):
        inside = imageio.imread(gif(torch.cat([frames] * 2), [0, 1], range(10)), index=0)[40:240, 40:200]
        assert len(np.unique(inside)) == 1
    shades = few_greys(torch.linspace(0, 1, 1001))
    assert len(shades.unique()) == 13 and (few_greys(shades / 255) == shades).all()


def test_colours_stay_colours():
    """In a tile, a PNG, a moving PNG and a GIF."""
    frames = torch.zeros(2, 3, 4, 3, 8, 8, dtype=torch.uint8)
    frames[:, 0, :, 0] = frames[:, 1, :, 1] = frames[:, 2, :, 2] = 255                     # a row of each
    tiled = figures.tile(frames[0])
    assert tiled.shape == (24, 32, 3) and (tiled[[4, 12, 20], 16] == 255 * np.eye(3)).all()
    figure, axis = subplots()
    show_tile(axis, frames[0], row_labels="abc")
    for content in (png(figure), gif(frames, [0, 1], "abc"), figures.moving_png(gif(frames, [0, 1], "abc"))):
        seen = np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB")).reshape(-1, 3).astype(int)
        assert all((np.abs(seen - 255 * colour).max(1) < 40).sum() > 100 for colour in np.eye(3))


def shown(content, alt, monkeypatch):
    """The two outputs of show(), as a notebook keeps them."""
    outputs = []
    monkeypatch.setattr(figures, "display", lambda data, metadata=None, raw=False: outputs.append(
        nbformat.v4.new_output("display_data", data, metadata=metadata or {})))
    show(content, alt)
    return outputs


def test_a_png_is_shown_at_half_its_size_and_keeps_every_grey(monkeypatch):
    greys = torch.arange(256, dtype=torch.uint8).repeat(49, 1).T.reshape(4, 4, 28, 28)     # sixteen greys an image
    figure, axis = subplots(figsize=(4, 4))
    show_tile(axis, greys)
    whole = io.BytesIO()
    figure.savefig(whole, dpi=180, bbox_inches="tight")
    picture, _ = shown(png(figure), "all greys", monkeypatch)
    pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).convert("L"))
    size = picture.metadata["image/png"]
    assert (size["width"], size["height"]) == (pixels.shape[1] // 2, pixels.shape[0] // 2)
    assert 280 < size["width"] < 360                                     # 4 inches of 90 dots, less the margins
    assert np.array_equal(pixels, imageio.imread(whole.getvalue())[..., 0])


def test_a_gif_goes_out_as_a_png_that_moves_alike_and_stands_still_at_its_end(monkeypatch):
    """The same greys for as long; what knows no moving PNG, as LaTeX, finds the last frame in a PNG as any other."""
    frames = torch.rand(3, 10, 8, 28, 28, generator=torch.Generator().manual_seed(0))
    content = gif(frames, [0, 1, 30], range(10))
    picture, _ = shown(content, "noise", monkeypatch)
    moving = PIL.Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"])))
    assert moving.format == "PNG" and moving.is_animated and "width" not in picture.metadata["image/png"]
    still, *pages = (np.asarray(page.convert("L")) for page in PIL.ImageSequence.Iterator(moving))
    expected = imageio.imread(content, index=None)[..., 0]
    assert np.array_equal(np.stack(pages), expected) and np.array_equal(still, expected[-1])
    times = []
    for i in range(1, moving.n_frames):
        moving.seek(i)
        times.append(moving.info["duration"])
    assert times == [200, 200, 3000]


ALT = "Grey <all> over & \"nothing\" else"


def test_words_and_pictures_pass_through_every_renderer(monkeypatch):
    """Each picture, and after it its words, unseen but there for a screen reader; VS Code looks in text/plain, nbconvert's
    classic template in the metadata; a GIF by a PNG's name would stop LaTeX."""
    contents = png(subplots()[0]), gif(torch.zeros(2, 10, 8, 28, 28, dtype=torch.uint8), [0, 1], range(10))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=shown(content, ALT, monkeypatch))
                                               for content in contents])
    for template in ("lab", "classic"):
        page = BeautifulSoup(nbconvert.HTMLExporter(template_name=template).from_notebook_node(notebook)[0], "html.parser")
        images, words = page.select("img"), page.find_all("p", string=ALT)
        assert len(images) == len(words) == 2
        for image, word in zip(images, words, strict=True):
            assert "position:absolute" in word["style"] and word.find_previous("img") is image
            assert image["src"].startswith("data:image/png;base64,iVBOR") and (template == "lab" or image["alt"] == ALT)
    assert all(cell.outputs[0].data["text/plain"] == cell.outputs[0].metadata["image/png"]["alt"] == ALT
               for cell in notebook.cells)
    text, resources = nbconvert.LatexExporter().from_notebook_node(notebook)
    assert len(resources["outputs"]) == text.count("{output_") == 2
    assert all(content.startswith(b"\x89PNG\r\n\x1a\n") for content in resources["outputs"].values())
