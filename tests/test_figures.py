"""Pictures: GIFs with curves under them, every grey kept, and texts for those who do not see them; a panel with sliders."""

import base64
import io
from unittest.mock import patch

import imageio.v3 as imageio
import matplotlib.pyplot as plt
import nbconvert
import nbformat
import numpy as np
import PIL.Image
import PIL.ImageSequence
import torch
from bs4 import BeautifulSoup

from amnesia import few_greys, figures, gif, panel, png, show, show_tile, subplots

ALT = "Grey <all> over & \"nothing\" else"


def opened(content):
    return PIL.Image.open(io.BytesIO(content))


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def moving(frames):
    n, rows = frames.shape[:2]
    return gif(frames, [0, 2, 30][:n], range(rows), {"P": torch.linspace(1, 0, n), "H": torch.linspace(0, 2, n)}, marked=[0])


def pages(content):
    return imageio.imread(content, index=None)[..., 0].astype(int)


def shown(content):
    """The two outputs of show(), as a notebook keeps them."""
    with patch.object(figures, "display") as display:
        show(content, ALT)
    return [nbformat.v4.new_output("display_data", *call.args, metadata=call.kwargs.get("metadata", {}))
            for call in display.call_args_list]


def sent(content):
    """The PNG that goes out, and what is said of it."""
    picture, _ = shown(content)
    return base64.b64decode(picture.data["image/png"]), picture.metadata["image/png"]


def test_a_gif_shows_its_frames_in_order_and_a_dot_along_each_curve_also_as_the_png_that_goes_out():
    greys = torch.tensor([0, 85, 170]).byte()
    content = moving(greys[:, None, None, None, None].expand(3, 10, 8, 28, 28))
    seen = pages(content)
    height = round(seen.shape[1] * 0.8)
    assert [np.bincount(page[:height].ravel()).argmax() for page in seen] == greys.tolist()
    for half in np.array_split(seen[1:, height:], [seen.shape[2] // 2], axis=2):        # the dot, from step 2 to step 30
        assert np.ptp((half[0] != half[1]).any(0).nonzero()[0]) > 0.8 * half.shape[2]
    picture = opened(sent(content)[0])
    frames = [(np.asarray(page.convert("L")), page.info.get("duration")) for page in PIL.ImageSequence.all_frames(picture)]
    assert picture.format == "PNG" and [time for _, time in frames[1:]] == [200, 200, 3000]
    assert np.array_equal([frame for frame, _ in frames], seen[[2, 0, 1, 2]])    # what knows no moving PNG shows the first


def test_pictures_are_white_and_gifs_the_same_whatever_a_reader_has_set_and_so_are_the_settings_afterwards():
    frames = noise(2, 10, 8, 28, 28)
    plain = moving(frames)
    with plt.style.context("dark_background"), plt.rc_context({"savefig.facecolor": "black", "image.origin": "lower"}):
        plt.switch_backend("pdf")
        mine = dict(plt.rcParams)
        picture = np.asarray(opened(png(subplots()[0])).convert("L"))
        assert moving(frames) == plain and (picture[[0, -1]] == 255).all() and plt.rcParams == mine
    plt.switch_backend("agg")


def test_what_is_grey_all_over_is_shown_as_one_grey():
    """A spread of half a grey level to each side of 0.5, as a forgotten digit has, in a snapshot and in the GIF itself."""
    grey = 0.5 + (noise(1, 10, 8, 28, 28) - 0.5) / 255
    assert few_greys(grey).unique().tolist() == [128] and len(few_greys(torch.linspace(0, 1, 999)).unique()) == 13
    assert len(np.unique(pages(moving((grey * 255).round().byte()))[0, 40:240, 40:200])) == 1


def test_colours_stay_colours_and_rows_and_columns_their_places():
    frames = torch.zeros(2, 3, 4, 3, 8, 8, dtype=torch.uint8)
    frames[:, 0, :, 0] = frames[:, 1, :, 1] = frames[:, 2, :, 2] = 255                  # a row of each
    assert (figures.tile(frames[0])[[4, 12, 20], 31] == 255 * np.eye(3)).all()
    figure, axis = subplots()
    show_tile(axis, frames[0], row_labels="abc", column_labels="defg")
    assert axis.get_yticks().tolist() == [3.5, 11.5, 19.5] and axis.get_xticks().tolist() == [3.5, 11.5, 19.5, 27.5]
    for content in (png(figure), moving(frames), sent(moving(frames))[0]):
        seen = np.asarray(opened(content).convert("RGB")).reshape(-1, 3).astype(int)
        assert all((np.abs(seen - 255 * colour).max(1) < 40).sum() > 100 for colour in np.eye(3))


def test_a_png_is_shown_at_half_its_size_and_keeps_every_grey():
    figure, axis = subplots(figsize=(4, 4))
    show_tile(axis, torch.arange(256, dtype=torch.uint8).repeat(49, 1).T.reshape(4, 4, 28, 28))
    content, size = sent(png(figure))
    pixels = np.asarray(opened(content).convert("L"))
    assert (size["width"], size["height"]) == (pixels.shape[1] // 2, pixels.shape[0] // 2) and 280 < size["width"] < 360
    assert len(np.unique(pixels)) > 230                                 # as many as matplotlib draws


def test_words_and_pictures_pass_through_every_renderer():
    """nbconvert's classic template takes the words from the metadata; a GIF by a PNG's name would stop LaTeX."""
    cells = [nbformat.v4.new_code_cell(outputs=shown(content)) for content in
             (png(subplots()[0]), moving(noise(2, 10, 8, 28, 28)))]
    notebook = nbformat.v4.new_notebook(cells=cells)
    for template in ("lab", "classic"):
        page = BeautifulSoup(nbconvert.HTMLExporter(template_name=template).from_notebook_node(notebook)[0], "html.parser")
        words = page.find_all("p", string=ALT)
        assert page.select("img") == [word.find_previous("img") for word in words] and len(words) == 2
        assert template == "lab" or {image["alt"] for image in page.select("img")} == {ALT}
    made = nbconvert.LatexExporter().from_notebook_node(notebook)[1]["outputs"].values()
    assert {opened(content).format for content in made} == {"PNG"}


def test_every_control_of_the_panel_changes_the_pictures(cvae):
    """Of a small model, and of a copy that draws only grey under the label 0."""
    def draw(label, z):
        image = cvae.generate(torch.tensor([label]), z[None]).view(1, 28, 28)
        return torch.cat([image, torch.full_like(image, 0.5) if label == 0 else image])

    label, row, _ = panel(draw, ["original", "amnesiac"], torch.zeros(4), "0123456789").children
    sliders, *columns = row.children

    def seen():
        return [np.asarray(opened(column.children[1].value).convert("L")).astype(int) for column in columns]

    original, amnesiac = seen()
    assert (original == original[::8, ::8].repeat(8, 0).repeat(8, 1)).all()             # each pixel a square, nothing smoothed
    assert len(original) == 224 and (amnesiac == 128).all() and not (original == 128).all()
    for slider in sliders.children:
        slider.value, before = 2.0, original
        original, amnesiac = seen()
        assert (original != before).any() and (amnesiac == 128).all()
    label.value = 5
    assert np.array_equal(*seen()) and (seen()[0] != original).any()
