"""What a reader does: moves sliders, answers questions."""

import imageio.v3 as imageio
import torch
from IPython import get_ipython
from IPython.display import display

from .figures import tile


def panel(draw, titles, z, classes):
    """Buttons for the label, a slider for each number in the latent `z`, and the pictures that draw(label, z) makes of them.

    draw: images (len(titles), H, W) or (len(titles), 3, H, W) in [0, 1] for a label and a latent; classes: the labels' names. Returns an ipywidgets
    box. Raises ImportError without ipywidgets.
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


def check(answer, truth, because, rel=1e-3):
    """Says in a sentence whether an answer is right: words exactly, a number or a tensor within a share `rel`, in norm.

    Never raises: None, a blank, is not answered yet; what cannot be compared is not right yet.
    """
    if answer is None:
        print("Not answered yet: put your answer in the place of None, and run this cell again.")
        return
    try:
        if isinstance(truth, str):
            right = answer == truth
        else:
            answer, truth = (torch.as_tensor(value).detach().cpu().double() for value in (answer, truth))
            right = (answer - truth).norm() <= rel * truth.norm()
    except (RuntimeError, TypeError, ValueError):
        right = False
    print(f"Right: {because}" if right else "Not yet right: look again.")
