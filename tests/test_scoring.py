"""How models are measured: the bound against its formula, manifolds and looks against a loop."""

import math
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal

from amnesia import CVAE, elbo
from amnesia_studies.scoring import importance_weighted_bound, look_at, recall, refit_encoder


@pytest.fixture
def few(digits):
    pick = torch.randperm(len(digits[1]), generator=torch.Generator().manual_seed(0))[:20]  # some sets come sorted by label
    return digits[1].of(digits[1].images[pick], digits[1].labels[pick])


@pytest.mark.parametrize("k", [1, 3])
def test_the_bound_is_that_of_its_formula(few, k):
    """By torch.distributions in float64, on the same noise, three images, two at a time."""
    torch.manual_seed(0)
    cvae, few = CVAE(latent_dim=4, hidden=(32, 16)), few.of(few.images[:3], few.labels[:3])
    found, exact = importance_weighted_bound(cvae, few, k, seed=5, batch_size=2), deepcopy(cvae).double()
    generator = torch.Generator().manual_seed(5)
    noise = torch.cat([torch.randn(n * k, 4, generator=generator) for n in (2, 1)]).double()
    for x, y, draws, value in zip(*few[:], noise.view(3, k, 4), found, strict=True):
        x, y = x.double().expand(k, -1), y.double().expand(k, -1)
        mean, log_var = exact.encode(x, y)
        q = Normal(mean, (log_var / 2).exp())
        z = mean + draws * q.scale
        log_p = Bernoulli(logits=exact.decode(z, y), validate_args=False).log_prob(x).sum(1) + Normal(0, 1).log_prob(z).sum(1)
        ratio = log_p - q.log_prob(z).sum(1)
        assert value.item() == pytest.approx(ratio.logsumexp(0).item() - math.log(k), rel=1e-5)


def test_refitting_moves_the_encoder_only_and_raises_the_bound(few):
    torch.manual_seed(0)
    cvae, few.order = CVAE(latent_dim=4, hidden=(32, 16)), None
    before = deepcopy(cvae.state_dict())
    refitted = refit_encoder(cvae, few, steps=100, batch_size=20)
    assert all(torch.equal(before[name], value) for name, value in cvae.state_dict().items()) and few.order is None
    for name, p in refitted.named_parameters():
        assert torch.equal(before[name], p) == name.startswith("decoder") and p.requires_grad, name
    assert elbo(refitted, few).mean() > elbo(cvae, few).mean()


def test_recall_is_that_of_a_loop():
    torch.manual_seed(0)
    samples, real, inside = torch.randn(30, 5), torch.randn(40, 5) * 1.5 + 0.5, 0
    for point in real:
        balls = [sorted((one - other).norm().item() for other in samples)[3] for one in samples]     # the first is itself
        inside += any((point - one).norm().item() <= ball for one, ball in zip(samples, balls, strict=True))
    assert recall(samples, real) == pytest.approx(inside / 40) != recall(real, samples)


def test_a_look_is_that_of_a_loop(small):
    experiment = small()
    experiment.looked_at = 6
    found = look_at(experiment, experiment.original)
    z = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    for label in (0, 7):
        pictures = (experiment.original.generate(torch.full((6,), label), z[6 * label:6 * label + 6]) * 255).round()
        p = experiment.judge(pictures / 255).softmax(1).detach().double()
        assert found["P"][label] == pytest.approx(p[:, label].mean().item(), abs=1e-5)
        assert found["H"][label] == pytest.approx(-(p * p.log()).sum(1).mean().item(), abs=1e-5)
        assert found["share"][label] == pytest.approx((p.argmax(1) == label).double().mean().item())
        assert found["contrast"][label] == pytest.approx(np.mean([np.std(one.numpy()) for one in pictures]), abs=1e-3)


def test_a_worker_reads_the_files_itself_and_says_nothing(small, capsys):
    experiment = small()
    capsys.readouterr()
    again = pickle.loads(pickle.dumps(experiment))
    assert type(again) is type(experiment) and again is not experiment and again.lineage == experiment.lineage
    assert capsys.readouterr().out == "" and len(pickle.dumps(experiment)) < 1000
