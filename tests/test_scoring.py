"""How models are measured: bounds against numerical integration, manifolds and looks against a loop."""

import math
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch

from amnesia import CVAE, elbo, fit, negative_elbo_terms
from amnesia_studies.scoring import importance_weighted_bound, look_at, recall, refit_encoder


@pytest.fixture
def few(digits):
    pick = torch.randperm(len(digits[1]), generator=torch.Generator().manual_seed(0))[:20]  # some sets come sorted by label
    return digits[1].of(digits[1].images[pick], digits[1].labels[pick])


@pytest.fixture
def line(few):
    """A CVAE with one latent, trained a little, so that log p(x|c) is an integral over a line."""
    torch.manual_seed(0)
    cvae = CVAE(latent_dim=1, hidden=(32, 16))

    def loss():
        reconstruction, kl = negative_elbo_terms(cvae, *few.batch(20))
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    fit(cvae, loss, steps=200, learning_rate=1e-2)
    with torch.no_grad():
        cvae.encoder[-1].weight.zero_()
        cvae.encoder[-1].bias.copy_(torch.tensor([0.3, 1.5]))  # no help, but it leaves no z out: a gap to close
    return cvae


def log_likelihood(cvae, digits):
    """log p(x|c) in float64, by integrating over z."""
    z, cvae = torch.linspace(-12, 12, 1001, dtype=torch.float64)[:, None], cvae.double()
    prior = -z.squeeze(1).square() / 2 - math.log(2 * math.pi) / 2 + math.log(24 / 1000)
    values = []
    for x, y in zip(*digits[:], strict=True):
        logits = cvae.decode(z, y.double().expand(len(z), -1))
        p = torch.distributions.Bernoulli(logits=logits, validate_args=False)
        values.append((p.log_prob(x.double()).sum(1) + prior).logsumexp(0))
    cvae.float()
    return torch.stack(values).detach()


def test_the_bounds_rise_from_the_elbo_to_the_likelihood(line, few):
    exact = log_likelihood(line, few)
    averages = {k: torch.stack([importance_weighted_bound(line, few, k, seed) for seed in range(n)]).double().mean(0)
                for k, n in ((1, 50), (16, 20), (1024, 3))}
    elbos = torch.stack([elbo(line, few, seed) for seed in range(50)]).double().mean(0)  # on the same draws as k = 1
    torch.testing.assert_close(averages[1].mean(), elbos.mean(), rtol=0, atol=0.2)
    assert averages[1].mean() + 0.2 < averages[16].mean() <= exact.mean() + 1e-3
    torch.testing.assert_close(averages[1024], exact, rtol=0, atol=0.25)
    torch.testing.assert_close(averages[1024].mean(), exact.mean(), rtol=0, atol=0.05)


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
