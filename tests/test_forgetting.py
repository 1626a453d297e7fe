"""Two methods of the studies are the notebooks' own, to the bit: they are what the released rows were made by."""

import pytest
import torch
from cells import run_here

from amnesia import CVAE
from amnesia_studies.methods import Task, distilled, retrain


def test_distillation_is_notebook_03_to_the_bit(tmp_path, few):
    names = run_here("03_forget", "stage.save(", workspace=str(tmp_path), forget=[3, 8], steps=16, seed=5)
    files = names["stage"].files
    task = Task(files["original"].build(CVAE, "cpu"), files["fim"].state, few[0], torch.tensor([3, 8]),
                torch.tensor([0, 1, 2, 4, 5, 6, 7, 9]), seed=5, scale=0.01)
    ours = distilled(task)
    assert all(not torch.equal(p, old) for p, old in zip(ours.parameters(), task.original.parameters(), strict=True))
    for a, b in zip(ours.parameters(), names["cvae"].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("with_few")
def test_retraining_on_all_digits_is_notebook_01_to_the_bit(tmp_path, few):
    """Of copies moved a little, too."""
    names = run_here("01_train_cvae", "stage.save(", workspace=str(tmp_path), steps=25, seed=5)
    task = Task(CVAE(), {}, few[0], torch.tensor([]), torch.arange(10), seed=5, recipe=vars(names["stage"]))
    for a, b in zip(retrain(task).parameters(), names["cvae"].parameters(), strict=True):
        assert torch.equal(a, b)
