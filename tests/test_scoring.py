"""How models are measured: the bound against its formula, manifolds and looks against a loop."""

import math
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import RELEASED
from torch.distributions import Bernoulli, Normal

from amnesia import WorkspaceError, elbo
from amnesia_studies.scoring import importance_weighted_bound, look_at, recall, refit_encoder


def test_the_bound_is_that_of_its_formula(few, cvae, k=3):
    """By torch.distributions in float64, on the same noise, three images, two at a time."""
    three, exact = few[1].of(few[1].images[:3], few[1].labels[:3]), deepcopy(cvae).double()
    found, generator = importance_weighted_bound(cvae, three, k, seed=5, batch_size=2), torch.Generator().manual_seed(5)
    noise = torch.cat([torch.randn(n * k, 4, generator=generator) for n in (2, 1)]).double()
    for x, y, draws, value in zip(*three[:], noise.view(3, k, 4), found, strict=True):
        x, y = x.double().expand(k, -1), y.double().expand(k, -1)
        mean, log_var = exact.encode(x, y)
        q = Normal(mean, (log_var / 2).exp())
        z = mean + draws * q.scale
        log_p = Bernoulli(logits=exact.decode(z, y), validate_args=False).log_prob(x).sum(1) + Normal(0, 1).log_prob(z).sum(1)
        assert value.item() == pytest.approx((log_p - q.log_prob(z).sum(1)).logsumexp(0).item() - math.log(k), rel=1e-5)


def test_refitting_moves_the_encoder_only_and_raises_the_bound(few, cvae):
    digits, before = few[1].of(few[1].images[::25], few[1].labels[::25]), deepcopy(cvae.state_dict())
    refitted = refit_encoder(cvae, digits, steps=100, batch_size=20)
    assert all(torch.equal(before[name], value) for name, value in cvae.state_dict().items()) and digits.order is None
    for name, p in refitted.named_parameters():
        assert torch.equal(before[name], p) == name.startswith("decoder") and p.requires_grad, name
    assert elbo(refitted, digits).mean() > elbo(cvae, digits).mean()


def test_recall_is_that_of_a_loop():
    torch.manual_seed(0)
    samples, real, inside = torch.randn(30, 5), torch.randn(400, 5) * 1.5 + 0.5, 0
    balls = [sorted((one - other).norm() for other in samples)[3] for one in samples]       # the first is itself
    for point in real:
        inside += any((point - one).norm() <= ball for one, ball in zip(samples, balls, strict=True))
    assert recall(samples, real) == pytest.approx(inside / 400) != recall(real, samples)


def test_files_that_do_not_belong_together_are_refused(small, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save({**torch.load(RELEASED / "cvae.pt"), "settings": {"seed": 7}}, tmp_path / "checkpoints" / "cvae.pt")
    with pytest.raises(WorkspaceError, match=r"fim-cvae\.pt was not made from this"):
        small()


def test_a_look_is_that_of_a_loop_also_in_a_worker_which_reads_the_files_itself(small, capsys):
    experiment = small()
    experiment.looked_at = 6
    found = look_at(experiment, experiment.original)
    z = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    for label in (0, 7):
        pictures = (experiment.original.generate(torch.full((6,), label), z[6 * label:6 * label + 6]) * 255).round()
        p = experiment.judge(pictures / 255).softmax(1).detach().double().numpy()
        expected = {"P": p[:, label].mean(), "H": -(p * np.log(p)).sum(1).mean(), "share": (p.argmax(1) == label).mean(),
                    "contrast": np.mean([np.std(one.numpy()) for one in pictures])}
        assert {name: values[label] for name, values in found.items()} == pytest.approx(expected, abs=1e-3)
    capsys.readouterr()
    again = pickle.loads(pickle.dumps(experiment))
    assert type(again) is type(experiment) and again is not experiment and again.lineage == experiment.lineage
    assert capsys.readouterr().out == "" and len(pickle.dumps(experiment)) < 1000
