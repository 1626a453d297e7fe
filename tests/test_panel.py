"""What the panel's controls do, and what is said of an answer."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from amnesia import check, panel


@pytest.fixture
def controls(cvae):
    """(label, sliders, pictures) of a panel over a small model and a copy of it that draws only grey."""
    def draw(label, z):
        image = cvae.generate(torch.tensor([label]), z[None]).view(1, 28, 28)
        return torch.cat([image, torch.full_like(image, 0.5) if label == 0 else image])

    label, row, pictures = panel(draw, ["original", "amnesiac"], torch.zeros(4), "0123456789").children
    sliders = row.children
    return label, sliders, [column.children[1] for column in pictures.children]


def shown(pictures):
    return [np.asarray(PIL.Image.open(io.BytesIO(picture.value)).convert("L")) for picture in pictures]


def test_every_control_of_the_panel_changes_the_pictures(controls):
    label, sliders, pictures = controls
    original, amnesiac = shown(pictures)
    assert original.shape == amnesiac.shape == (224, 224)
    assert (original == original[::8, ::8].repeat(8, 0).repeat(8, 1)).all()     # each pixel a square, nothing smoothed
    assert (amnesiac == 128).all() and not (original == 128).all()      # twins under label 0
    for slider in sliders:
        slider.value = 2.0
        assert (shown(pictures)[0] != original).any() and (shown(pictures)[1] == amnesiac).all()
        original = shown(pictures)[0]
    label.value = 5
    assert (shown(pictures)[0] == shown(pictures)[1]).all() and (shown(pictures)[0] != original).any()


@pytest.mark.parametrize(("answer", "truth", "right"), [
    ("less", "less", True), ("more", "less", False), (None, "less", None), (None, 1.0, None), ("less", 1.0, False),
    (543.4, torch.tensor(543.427), True), (543.4, 540.0, False), (-0.0, 0.0, True), (1, 0, False),
    (torch.ones(3, requires_grad=True), torch.ones(3), True), (torch.ones(2), torch.ones(3), False), (1.0, torch.ones(3), False),
    ("0,3", 0.3, False), (lambda x: 2 * x, 2.0, False)])
def test_an_answer_is_right_or_not_yet_or_missing_and_nothing_is_raised(capsys, answer, truth, right):
    check(answer, truth, "so it is.")
    assert capsys.readouterr().out.startswith({True: "Right: ", False: "Not yet right: ", None: "Not answered yet: "}[right])
