"""All that runs on a GPU, on a device that is not there (elsewhere.py): nothing mixes two devices or asks for what MPS
lacks, and no step of a training waits for a value."""

import itertools

import matplotlib.pyplot as plt
import pytest
import torch
from cells import STEMS, run_here
from clock import tick
from elsewhere import DEVICE, another_device
from torch.optim.optimizer import register_optimizer_step_post_hook

import amnesia
from amnesia import CVAE, Digits, Stage, Workspace, fit, negative_elbo_terms, train_judge
from amnesia_studies import experiment as experiment_module
from amnesia_studies import methods
from amnesia_studies.experiment import Experiment
from amnesia_studies.methods import METHODS, batch_mean_fisher, selective_amnesia
from amnesia_studies.runs import forget_and_recover, forget_and_score, forget_and_search_label, forget_in_turn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array_")]  # matplotlib's, of tensors
PARAMETERS = {"device": DEVICE.type, "steps": 3, "batch_size": 16, "n_samples": 400, "n_per_class": 16}


def waits_in_a_step(waits, work):
    """What made the device wait between the first and last step of each fit() in work(), and how many steps they were."""
    runs = {}                                               # of each optimizer

    def mark(optimizer, *_):
        if isinstance(optimizer, torch.optim.AdamW):
            runs.setdefault(optimizer, []).append(len(waits))

    hook = register_optimizer_step_post_hook(mark)
    work()
    hook.remove()
    return [what for marks in runs.values() for what in waits[marks[0]:marks[-1]]], sum(map(len, runs.values()))


@pytest.fixture(scope="module")
def elsewhere(digits):
    """The list of what made the device wait. With it: a clock that stands still; 500 digits wherever a data set is loaded,
    no copies of them, and 20 samples of each label to be scored; figures that are drawn, and not written."""
    def few(dataset, folder, device="cpu"):
        return [Digits(*(values[::len(values) // 500] for values in (part.images, part.labels)), part.name).to(device)
                for part in digits]

    with pytest.MonkeyPatch.context() as patch:
        for owner, name, value in ((amnesia, "load_digits", few), (experiment_module, "load_pictures", few),
                                   (experiment_module.Experiment, "samples", 20),
                                   (amnesia, "png", lambda figure: plt.close(figure) or b""),
                                   (amnesia, "show", lambda *_, **options: None),
                                   (amnesia, "grow", lambda digits, seed: digits),
                                   (methods, "grow", lambda digits, seed: digits)):
            patch.setattr(owner, name, value)
        tick(0, patch.setattr)
        with another_device(patch) as waits:
            yield waits


@pytest.fixture(scope="module")
def notebooks(elsewhere, tmp_path_factory):
    """What the five notebooks define, by their numbers, after a run of each in miniature, in one workspace."""
    workspace = str(tmp_path_factory.mktemp("notebooks"))
    return {stem[:2]: run_here(stem, workspace=workspace, **PARAMETERS) for stem in STEMS}


@pytest.mark.parametrize("refused", [lambda x: x + torch.ones(3), lambda x: x.double(), lambda x: x.numpy(),
                                     lambda x: x.kthvalue(1), lambda x: torch.Generator(DEVICE),
                                     lambda x: torch.rand(3, device=DEVICE, generator=torch.Generator())])
def test_what_a_gpu_refuses_is_refused(elsewhere, refused):
    with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
        refused(torch.ones(3, device=DEVICE))


@pytest.mark.parametrize("slow", [lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: bool(x[0]), lambda x: x.cpu(),
                                  lambda x: torch.equal(x, x), lambda x: x.nonzero(), lambda x: x[x > 0],
                                  lambda x: x[[0, 1]], lambda x: torch.tensor([1], device=DEVICE), lambda x: f"{x[0]:.1f}"])
def test_what_makes_a_gpu_wait_is_noted(elsewhere, slow):
    before, x = len(elsewhere), torch.ones(3, device=DEVICE)
    (x[1:] * 2 + x[x.long()][:2]).sum()
    assert len(elsewhere) == before
    slow(x)
    assert len(elsewhere) > before


def test_the_notebooks_run_on_it(notebooks):
    trained = [notebooks[number]["cvae"] for number in ("01", "03")]
    assert {p.device for cvae in trained for p in cvae.parameters()} == {DEVICE}


LOSSES = [("01", {}), ("03", {}), ("03", {"remember": "replay"}), ("03", {"surrogate": 4}),
          ("03", {"remember": "replay", "surrogate": 4})]


@pytest.mark.parametrize("number, choices", LOSSES)
def test_no_step_of_a_notebook_waits(elsewhere, notebooks, monkeypatch, number, choices):
    names = notebooks[number]
    for name, value in choices.items():
        monkeypatch.setitem(names, name, value)
    names["cvae"].train()
    waited, steps = waits_in_a_step(elsewhere, lambda: fit(names["cvae"], names["loss"], steps=9, learning_rate=1e-3,
                                                           data=names.get("examples")))
    assert steps == 9 and not waited


@pytest.fixture(scope="module")
def experiment(elsewhere, tmp_path_factory):
    return Experiment(str(tmp_path_factory.mktemp("experiment")), device=DEVICE.type)


FORGETTING = {**METHODS,
              "identity": lambda task: selective_amnesia(task, importance="identity"),
              "prior": lambda task: selective_amnesia(task, posterior="prior", reach=0.3)}

STEPS = {"original": 0, "dampening": 0, "as published": 20, "with a margin": 3 + 3, "distilled anew": 3 + 16}  # a 500th


@pytest.mark.parametrize("name", FORGETTING)
def test_no_step_of_a_method_waits(elsewhere, experiment, name):
    task = experiment.task([0, 3], scale=0.002)
    task.recipe = {**task.recipe, "steps": 1500}
    after = []
    waited, steps = waits_in_a_step(elsewhere, lambda: after.append(FORGETTING[name](task)))
    assert after[0].encoder[0].weight.device == DEVICE
    assert steps == STEPS.get(name, 3) and not waited


WORK = {"the judge": lambda e: train_judge(Workspace(e.store.folder / "another"), e.train, steps=2, batch_size=16),
        "score": lambda e: forget_and_score(e, "selective amnesia", [0], scale=0.002, bounds=True),
        "in turn": lambda e: forget_in_turn(e, [0, 3], scale=0.002, remember="distil"),
        "recover": lambda e: forget_and_recover(e, "selective amnesia", [0], scale=0.002, restarts=4),
        "one label": lambda e: forget_and_search_label(e, "original", [0], scale=0.002),
        "batch mean": lambda e: batch_mean_fisher(e.task([0]), n_samples=500)}


@pytest.mark.parametrize("name", WORK)
def test_judging_and_attacking_run_on_it(experiment, name):
    assert WORK[name](experiment)


class Killed(BaseException):
    """What kill -9 looks like from inside."""


def test_a_killed_run_resumes_to_the_same_values(elsewhere, experiment, tmp_path, monkeypatch):
    tick(100, monkeypatch.setattr)
    stage, digits = Stage(Workspace(tmp_path), "cvae.pt", {}), experiment.train

    def run(stage=None, last=None):
        torch.manual_seed(0)
        cvae, calls = CVAE(4, (32, 16)).to(DEVICE), itertools.count(1)
        labels, z = torch.arange(10, device=DEVICE), torch.ones(10, 4, device=DEVICE)

        def loss():
            if next(calls) == last:
                raise Killed
            reconstruction, kl = negative_elbo_terms(cvae, *digits.batch(300))             # a new order at every second
            return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

        history = fit(cvae, loss, steps=12, learning_rate=1e-3, data=digits, stage=stage,
                      snapshot=lambda: {"frames": cvae.generate(labels, z)})
        return [*cvae.parameters(), history["frames"], *history["terms"].values()]

    whole = run()
    with pytest.raises(Killed):
        run(stage, last=8)
    torch.randn(7)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(stage), strict=True))
