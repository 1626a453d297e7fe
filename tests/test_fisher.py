"""The fast Fisher information against a one-sample-at-a-time loop in float64."""

import copy

import pytest
import torch
from torch import nn

from amnesia import CVAE, Stage, Workspace, diagonal_fisher, negative_elbo_terms, one_hot, squared_gradients


def brute_force(cvae, x, y, noise):
    cvae = copy.deepcopy(cvae).double()
    x, y, noise = x.double(), y.double(), noise.double()
    total = {name: torch.zeros_like(p) for name, p in cvae.named_parameters()}
    for i in range(len(x)):
        cvae.zero_grad()
        reconstruction, kl = negative_elbo_terms(cvae, x[i:i + 1], y[i:i + 1], noise[i:i + 1])
        (reconstruction + kl).sum().backward()
        for name, p in cvae.named_parameters():
            total[name] += p.grad ** 2
    return total


@pytest.mark.parametrize("model", [{}, {"latent_dim": 3, "hidden": (40,)}])
def test_squared_gradients_equal_brute_force(model):
    torch.manual_seed(1)
    cvae = CVAE(**model)
    labels = torch.randint(10, (64,))
    x, y, noise = cvae.generate(labels), one_hot(labels), torch.randn(64, cvae.latent_dim)
    exact, fast = brute_force(cvae, x, y, noise), squared_gradients(cvae, x, y, noise)
    assert fast.keys() == exact.keys() == dict(cvae.named_parameters()).keys()
    for name in exact:
        assert fast[name].shape == exact[name].shape
        assert (fast[name] - exact[name]).norm() / exact[name].norm() < 1e-5, name


def test_diagonal_fisher_is_the_mean_over_all_samples(cvae):
    """The same draws in the same order, so that the only difference is rounding. 130 is no multiple of the batch."""
    torch.manual_seed(3)
    fim = diagonal_fisher(cvae, 130, batch_size=50)
    torch.manual_seed(3)
    expected = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in cvae.named_parameters()}
    for size in (50, 50, 30):
        labels = torch.randint(10, (size,))
        x = cvae.generate(labels)
        for name, squares in brute_force(cvae, x, one_hot(labels), torch.randn(size, 4)).items():
            expected[name] += squares / 130
    for name in expected:
        assert (fim[name] - expected[name]).norm() / expected[name].norm() < 1e-5, name


def test_a_batchs_mean_gradient_is_not_the_fisher(cvae):
    """The popular mistake is far too small: if this fails, the sum has crept inside the square."""
    torch.manual_seed(0)
    labels = torch.randint(10, (500,))
    x, noise = cvae.generate(labels), torch.randn(500, 4)
    reconstruction, kl = negative_elbo_terms(cvae, x, one_hot(labels), noise)
    (reconstruction + kl).mean().backward()
    mistaken = sum((p.grad ** 2).sum() for p in cvae.parameters())
    correct = sum(value.sum() for value in squared_gradients(cvae, x, one_hot(labels), noise).values()) / 500
    assert correct > 5 * mistaken


def test_other_layers_are_refused(cvae):
    cvae.decoder[1] = nn.BatchNorm1d(16)
    with pytest.raises(TypeError, match="linear layers only"):
        squared_gradients(cvae, torch.rand(2, 784), one_hot(torch.tensor([0, 1])), torch.randn(2, 4))


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(cvae, tmp_path, monkeypatch):
    monkeypatch.setattr(Stage, "due", True)                                    # saves after every batch

    def dies(batches):
        for start in batches:
            if start == 300:
                raise KeyboardInterrupt
            yield start

    def run(progress=iter, stage=None):
        torch.manual_seed(0)
        return diagonal_fisher(cvae, 500, 100, progress, stage=stage)

    stage = Stage(Workspace(tmp_path), "fim-cvae.pt", {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        run(dies, stage)
    seen, whole = [], run()
    resumed = run(lambda batches: (seen.append(start) or start for start in batches), stage)
    assert seen == [300, 400] and all(torch.equal(whole[name], resumed[name]) for name in whole)
