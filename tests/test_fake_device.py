"""No step of a training mixes devices: checked without a card, on torch's "meta", whose tensors have shapes and no values."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from cells import run_here
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amnesia import Classifier, ewc_penalty, jitter, squared_gradients

META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """What a GPU refuses is refused: a tensor of the CPU in an operation with one of META; a value that is waited for."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kinds = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim}
        if len(kinds) > 1:
            raise RuntimeError(f"{operator}: expected all tensors to be on the same device, found {kinds}")
        return operator(*args, **(kwargs or {}))


def moved(names):
    """What a notebook's cells have defined, with `dev` and every tensor and model on META."""
    for name, value in names.items():
        if isinstance(value, torch.Tensor | torch.nn.Module):
            names[name] = value.to(META)
        elif name == "fim":
            names[name] = {key: one.to(META) for key, one in value.items()}
        elif name == "examples":
            value.images, value.labels = value.images.to(META), value.labels.to(META)
            value.restart()
    names["dev"] = META
    return names


@pytest.mark.usefixtures("with_few")
@pytest.mark.parametrize(("stem", "until"), [("01_train_cvae", "stage.save("), ("03_forget", "def loss")])
def test_no_step_mixes_devices(tmp_path, stem, until):
    names = moved(run_here(stem, until, workspace=str(tmp_path), steps=1, batch_size=16))
    with OneDevice():
        for choices in ({"remember": "replay"}, {"surrogate": 4}, {"remember": "distil", "surrogate": "noise"}):
            vars(names["stage"]).update(choices)
            terms = names["loss"]()
            sum(terms.values()).backward()
        cvae = names["cvae"]
        assert {term.device for term in terms.values()} == {p.grad.device for p in cvae.parameters()} == {META}
        x, y, z = torch.rand(8, 784, device=META), torch.rand(8, 10, device=META), torch.rand(8, 8, device=META)
        assert {value.device for value in squared_gradients(cvae, x, y, z).values()} == {META}
        ewc_penalty(cvae, deepcopy(cvae), dict(cvae.named_parameters())).backward()
        F.cross_entropy(Classifier().to(META)(jitter(x)), y).backward()
