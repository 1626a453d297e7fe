"""What a reader does: moves sliders, answers questions."""

import imageio.v3 as imageio
import torch
from IPython import get_ipython
from IPython.display import display

from .figures import tile


def panel(draw, titles, z, classes):
    """Buttons for the label, a slider for each number in the latent `z`, and the pictures that draw(label, z) makes of them.

    draw: images (len(titles), H, W) or (len(titles), 3, H, W) in [0, 1] for a label and a latent; classes: their names.
    Returns an ipywidgets box. Raises ImportError without ipywidgets.
    """
    import ipywidgets as widgets  # the notebooks run without it, and then show no panel

    options = [(name, label) for label, name in enumerate(classes)]
    label = widgets.ToggleButtons(options=options, description="label",
                                  style={"button_width": f"{18 + 9 * max(2, *map(len, classes))}px"})
    sliders = [widgets.FloatSlider(value, min=-5, max=5, step=0.1, description=f"z{i + 1}", orientation="vertical",
                                   readout=False, layout={"width": "45px", "height": "130px"})
               for i, value in enumerate(z.tolist())]
    noise = widgets.Button(description="new noise", tooltip="draw another z from the prior")
    pictures = [widgets.Image(format="png", width=224, height=224) for _ in titles]
    generator = torch.Generator().manual_seed(0)

    def update(_=None):
        latent = torch.tensor([slider.value for slider in sliders])
        for picture, image in zip(pictures, draw(label.value, latent), strict=True):
            enlarged = tile(image[None, None]).repeat(8, 0).repeat(8, 1)
            picture.value = imageio.imwrite("<bytes>", enlarged, extension=".png")

    def draw_noise(_):
        for slider, value in zip(sliders, torch.randn(len(sliders), generator=generator).tolist(), strict=True):
            slider.value = value

    for control in (label, *sliders):
        control.observe(update, "value")
    noise.on_click(draw_noise)
    update()
    columns = [widgets.VBox([widgets.Label(title), picture]) for title, picture in zip(titles, pictures, strict=True)]
    return widgets.VBox([label, widgets.HBox([*sliders, noise]), widgets.HBox(columns)])


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


def fault(answer, truth, rel):
    """What is wrong with an answer, in words; "" if nothing is."""
    if isinstance(truth, str):
        return "" if answer == truth else "look again."
    answer, truth = (torch.as_tensor(value).detach().cpu().double() for value in (answer, truth))
    if answer.squeeze().shape != truth.squeeze().shape:
        return f"its shape is {tuple(answer.shape)}, and should be {tuple(truth.shape)}."
    factor = ((answer * truth).sum() / truth.square().sum()).item()
    faults = {factor: f"it is {factor:.3g} times what it should be.", -1: "the sign is wrong.", 1: ""}
    near = [scale for scale in faults if (answer - scale * truth).norm() <= rel * abs(scale) * truth.norm()]
    return faults[near[-1]] if near else "its shape is right, but no factor makes its values right."


def check(answer, truth, because, rel=1e-3, on=()):
    """Says in a sentence whether an answer is right, and else what is wrong: its shape, its sign, a factor.

    Words must be the same, numbers and tensors within a share `rel`, in norm. on: what to call answer and truth with, where
    they are functions. Never raises: None, a blank, is not answered yet; what cannot be compared is not right yet.
    """
    if answer is None:
        return print("Not answered yet: put your answer in the place of None, and run this cell again.")
    try:
        wrong = fault(answer(*on) if callable(answer) else answer, truth(*on) if callable(truth) else truth, rel)
    except Exception as error:                              # whatever a reader's own function raises
        wrong = f"{type(error).__name__}: {error}"
    print(f"Not yet right: {wrong}" if wrong else f"Right: {because}")
