"""What is said of a reader's answer."""

import pytest
import torch

from amnesia import check


@pytest.mark.parametrize(("answer", "truth", "said"), [
    ("less", "less", "Right"), ("more", "less", "Not yet right"), (None, 1.0, "Not answered yet"), ("less", 1.0, "Not yet right"),
    (543.4, torch.tensor(543.427), "Right"), (543.4, 540.0, "Not yet right"), (1, 0, "Not yet right"), (-0.0, 0.0, "Right"),
    (torch.ones(3, requires_grad=True), torch.ones(3), "Right"), (torch.ones(2), torch.ones(3), "Not yet right"),
    (lambda x: 2 * x, 2.0, "Not yet right")])
def test_an_answer_is_right_or_not_yet_or_missing_and_nothing_is_raised(capsys, answer, truth, said):
    check(answer, truth, "so it is.")
    assert capsys.readouterr().out.startswith(f"{said}: ")
