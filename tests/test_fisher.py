"""The fast Fisher information against a one-sample-at-a-time loop in float64, for layers of every kind; the penalty."""

import copy

import pytest
import torch
from cells import run_here
from conftest import RELEASED
from torch import nn

from amnesia import CVAE, Saved, Stage, diagonal_fisher, ewc_penalty, negative_elbo_terms, one_hot, squared_gradients


def brute_force(cvae, x, y, noise):
    cvae = copy.deepcopy(cvae).double()
    x, y, noise = x.double(), y.double(), noise.double()
    total = {name: torch.zeros_like(p) for name, p in cvae.named_parameters()}
    for i in range(len(x)):
        cvae.zero_grad()
        sum(negative_elbo_terms(cvae, x[i:i + 1], y[i:i + 1], noise[i:i + 1])).sum().backward()
        for name, p in cvae.named_parameters():
            total[name] += p.grad ** 2
    return total


class Layers(nn.Module):
    """Of pictures of 8 × 8 in three classes: convolutions, groups, an embedding, a weight used twice, a tied one."""

    latent_dim, classes = 2, 3

    def __init__(self):
        super().__init__()
        self.look = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 4, stride=2, padding=1), nn.GroupNorm(2, 4),
                                  nn.SiLU(), nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1), nn.Flatten())
        self.label, self.twice = nn.Embedding(3, 64), nn.Linear(64, 64)
        self.read, self.tied, self.draw = nn.Linear(64, 4), nn.Linear(64, 4), nn.Linear(5, 64)
        self.tied.weight = self.read.weight

    def encode(self, x, y):
        h = self.twice(self.twice(self.look(x) + self.label(y.argmax(1))).tanh())
        return (self.read(h) + self.tied(h)).chunk(2, 1)

    def decode(self, z, y):
        return self.draw(torch.cat([z, y], 1))


@pytest.mark.parametrize(("cvae", "pixels"), [(CVAE(latent_dim=2, hidden=(40,), classes=3), 784), (Layers(), 64)])
def test_squared_gradients_equal_brute_force(cvae, pixels, monkeypatch):
    torch.manual_seed(1)
    batch = [part.double() for part in (torch.rand(24, pixels), one_hot(torch.randint(3, (24,)), 3), torch.randn(24, 2))]
    exact = brute_force(cvae.double(), *batch)
    for room in (2**25, 2000):                                                  # all samples at a time, and a few
        monkeypatch.setattr("amnesia.fisher.ROOM", room)
        fast = squared_gradients(cvae, *batch)
        assert fast.keys() == exact.keys()
        for name in exact:
            torch.testing.assert_close(fast[name], exact[name], msg=lambda text, name=name: f"{name}: {text}")


def test_batch_normalisation_in_training_mode_is_refused(cvae):
    cvae.decoder[1] = nn.BatchNorm1d(16)
    batch = torch.rand(4, 784), one_hot(torch.arange(4), 10), torch.randn(4, 4)
    with pytest.raises(ValueError, match=r"eval"):
        squared_gradients(cvae, *batch)
    squared_gradients(cvae.eval(), *batch)


def test_diagonal_fisher_is_the_mean_over_all_samples(cvae):
    """The same draws in the same order, so that the only difference is rounding. 130 is no multiple of the batch."""
    torch.manual_seed(3)
    fim = diagonal_fisher(cvae, 130, batch_size=50)
    torch.manual_seed(3)
    batches = []
    for size in (50, 50, 30):
        labels = torch.randint(10, (size,))
        batches.append((cvae.generate(labels), one_hot(labels, 10), torch.randn(size, 4)))
    for name, total in brute_force(cvae, *map(torch.cat, zip(*batches, strict=True))).items():
        assert (fim[name] - total / 130).norm() / (total / 130).norm() < 1e-5, name


def test_chosen_labels_and_images_are_the_only_ones(cvae):
    """Nothing then flows through another label's weights; and each of them alike."""
    fim = diagonal_fisher(cvae, 400, labels=torch.tensor([3, 8]))
    column = fim["decoder.0.weight"][:, cvae.latent_dim:].sum(0)
    assert column.nonzero().flatten().tolist() == [3, 8] and 0.5 < column[3] / column[8] < 2
    black = diagonal_fisher(cvae, 40, images=lambda labels: torch.zeros(len(labels), 784))
    assert not black["encoder.0.weight"][:, :784].any()


def test_notebook_02_s_is_of_the_model_that_it_names(tmp_path):
    saved = run_here("02", "stage.save(", workspace=str(tmp_path), model="amnesiac-0", n_samples=60, seed=4)["saved"]
    model = Saved(RELEASED / "amnesiac-0.pt").build(CVAE, "cpu")
    torch.manual_seed(4)
    for name, value in diagonal_fisher(model, 60).items():
        assert torch.equal(value, saved.state[name])


def test_a_run_that_was_cut_off_goes_on_and_ends_with_the_same_bits(cvae, store, monkeypatch):
    monkeypatch.setattr(Stage, "due", True)                                     # saves after every batch
    stage, seen = Stage(store, "fim-cvae.pt", {"seed": 0}), []

    def run(stage=None, batches=iter):
        torch.manual_seed(0)
        return diagonal_fisher(cvae, 500, 100, lambda starts: (seen.append(start) or start for start in batches(starts)),
                               stage=stage)

    whole = run()
    with pytest.raises(ZeroDivisionError):
        run(stage, lambda starts: (start for start in starts if 1 / (300 - start)))     # it ends at the fourth
    resumed = run(stage)
    assert seen[5:] == [0, 100, 200, 300, 400] and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_penalty_and_its_gradient_are_those_of_the_formula():
    torch.manual_seed(0)
    old, model = Layers().double(), Layers().double()
    fim = {name: torch.rand_like(p) for name, p in old.named_parameters()}
    changes = {name: p.detach() - dict(old.named_parameters())[name].detach() for name, p in model.named_parameters()}
    penalty = 0.3 * ewc_penalty(model, old, fim)
    torch.testing.assert_close(penalty, 0.3 * sum((fim[name] * change ** 2).sum() for name, change in changes.items()) / 2)
    penalty.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, 0.3 * fim[name] * changes[name])
    assert not any(p.grad is not None for p in old.parameters())
