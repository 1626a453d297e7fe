"""A clock for training that does not depend on the machine's; also for kernels and processes that tests start."""

from itertools import count
from types import SimpleNamespace

from amnesia import Stage, training


def tick(seconds=100, setattr=setattr):
    """From now on fit's clock goes on by so many seconds at each look, and progress is saved whenever it may be: with 100, at
    every step; with 0, never, for fit then never looks. setattr: a monkeypatch's, to end it."""
    setattr(training, "time", SimpleNamespace(perf_counter=count(0, seconds).__next__))
    setattr(Stage, "due", True)
