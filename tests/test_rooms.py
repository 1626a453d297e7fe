"""Who may import whom: read from the text, for a run would import all of the helper at once."""

import ast
from graphlib import TopologicalSorter

import pytest
from conftest import REPOSITORY

from amnesia.data import CLASSES
from amnesia.parameters import LABELS

HELPER = REPOSITORY / "notebooks" / "amnesia"


def imported(path):
    """The modules that a file imports anywhere in it, as written: ".data", "torch.nn", …"""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add("." * node.level + node.module)
        elif isinstance(node, ast.ImportFrom):                                    # from . import data
            modules |= {"." * node.level + alias.name for alias in node.names}
    return modules


IMPORTED = {path.stem: imported(path) for path in HELPER.glob("*.py")}
ROOMS = {room: {module[1:] for module in modules if module.startswith(".")}
         for room, modules in IMPORTED.items() if room != "__init__"}


def behind(room):
    """Every room that this one imports, and those that they import."""
    return ROOMS[room].union(*map(behind, ROOMS[room]))


def test_the_helper_knows_nothing_of_the_studies():
    assert not {module for modules in IMPORTED.values() for module in modules
                if module.split(".")[0] in ("amnesia", "experiments") or module.startswith("..")}


def test_there_are_no_circles():
    assert {*TopologicalSorter(ROOMS).static_order()} == {*ROOMS}  # raises CycleError


@pytest.mark.parametrize("room", ["training", "drive", "files", "parameters", "workspace", "figures"])
def test_the_machinery_knows_nothing_of_vaes_or_digits(room):
    assert behind(room).isdisjoint({"data", "models", "fisher", "evaluation"})


@pytest.mark.parametrize("room", ["evaluation", "fisher"])
def test_what_measures_stands_on_models_and_data(room):
    assert {"models", "data"} <= ROOMS[room]


def test_labels_are_the_same_in_both_rooms_that_know_them():
    assert range(CLASSES) == LABELS
