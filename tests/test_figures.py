"""Pictures: GIFs with curves under them, every grey kept, and texts for those who do not see them."""

import base64
import io
import itertools

import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.core.formatters import DisplayFormatter
from IPython.display import Image

from amnesia import few_greys, figures, gif, png, show, show_tile


def test_a_gif_shows_its_curves_under_the_frames():
    frames = torch.zeros(3, 10, 8, 28, 28, dtype=torch.uint8)
    plain, curved = (imageio.imread(io.BytesIO(gif(frames, [0, 2, 30], curves=curves)), index=None)
                     for curves in (None, {"P": torch.tensor([1.0, 0.5, 0.0]), "H": torch.tensor([0.0, 2.0, 1.0])}))
    height = plain.shape[1]
    assert len(curved) == 3 and curved.shape[1] > height and curved.shape[2] == plain.shape[2]
    assert all((before != after)[height:].any() for before, after in itertools.pairwise(curved))  # the dot moves
    _, before, after = curved[:, height:, :curved.shape[2] // 2]
    columns = (before != after).any((0, 2)).nonzero()[0]
    assert np.ptp(columns) > 0.8 * before.shape[1]                      # of P's dot, from step 2 to step 30


def test_what_is_grey_all_over_is_shown_as_one_grey():
    """A spread of half a grey level to each side of 0.5, as a forgotten digit has, in a snapshot and in the GIF itself."""
    grey = 0.5 + (torch.rand(1, 10, 8, 28, 28, generator=torch.Generator().manual_seed(0)) - 0.5) / 255
    plain = (grey * 255).round().byte()
    assert plain.unique().tolist() == [127, 128] and few_greys(grey).unique().tolist() == [128]
    for frames in (few_greys(grey), plain):
        inside = imageio.imread(gif(torch.cat([frames] * 2), [0, 1]), index=0)[40:240, 40:200]
        assert len(np.unique(inside)) == 1
    shades = few_greys(torch.linspace(0, 1, 1001))
    assert len(shades.unique()) == 13 and (few_greys(shades / 255) == shades).all()


def test_a_png_is_shown_at_half_its_size_and_keeps_every_grey(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    greys = torch.arange(256, dtype=torch.uint8).repeat(49, 1).T.reshape(4, 4, 28, 28)     # sixteen greys an image
    figure, axis = plt.subplots(figsize=(4, 4))
    show_tile(axis, greys)
    whole = io.BytesIO()
    figure.savefig(whole, dpi=180, bbox_inches="tight")
    show(png(figure), alt="all greys")
    pixels = imageio.imread(shown[0].data)
    assert (shown[0].width, shown[0].height) == (pixels.shape[1] // 2, pixels.shape[0] // 2)
    assert 280 < shown[0].width < 360                                    # 4 inches of 90 dots, less the margins
    assert np.array_equal(pixels, imageio.imread(whole.getvalue())[..., 0])


def test_a_gif_goes_out_as_a_png_with_its_text_on_the_ipython_of_colab_too(monkeypatch):
    """IPython 7.34, which Colab has, knows no Image(alt=…)."""
    def image_of_7_34(data=None, url=None, filename=None, format=None, embed=None, width=None, height=None, retina=False,
                      unconfined=False, metadata=None):
        return Image(data, url, filename, format, embed, width, height, retina, unconfined, metadata)

    shown = []
    monkeypatch.setattr(figures, "Image", image_of_7_34)
    monkeypatch.setattr(figures, "display", lambda image: shown.append(DisplayFormatter().format(image)))
    content = gif(torch.zeros(2, 10, 8, 28, 28, dtype=torch.uint8), [0, 1])
    show(content, alt="nothing but black")
    (data, metadata), = shown
    assert metadata["image/png"] == {"alt": "nothing but black"}
    assert base64.b64decode(data["image/png"]) == content and len(imageio.imread(content, index=None)) == 2
