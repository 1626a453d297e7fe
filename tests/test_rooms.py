"""Who may import whom: read from the text, for a run would import all of the helper at once."""

import ast
from graphlib import TopologicalSorter

import pytest
from conftest import REPOSITORY

from amnesia.data import CLASSES
from amnesia.storage.parameters import LABELS

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


def name(path):
    """A room's name, from the helper's folder: "data", "storage.files", …"""
    return ".".join(path.relative_to(HELPER).with_suffix("").parts)


def room(module, importer):
    """The room that a relative import in `importer` means."""
    dots = len(module) - len(module.lstrip("."))
    inside = importer.split(".")[:-dots]
    return ".".join([*inside, *module[dots:].split(".")])


IMPORTED = {name(path): imported(path) for path in HELPER.rglob("*.py")}
ROOMS = {importer: {room(module, importer) for module in modules if module.startswith(".")}
         for importer, modules in IMPORTED.items() if not importer.endswith("__init__")}


def behind(one):
    """Every room that this one imports, and those that they import."""
    return ROOMS[one].union(*map(behind, ROOMS[one]))


def test_the_helper_knows_nothing_of_the_studies():
    assert not {module for modules in IMPORTED.values() for module in modules
                if module.split(".")[0] in ("amnesia", "amnesia_studies") }


def test_there_are_no_circles():
    assert {*TopologicalSorter(ROOMS).static_order()} == {*ROOMS}  # raises CycleError


@pytest.mark.parametrize("machine", ["training", "figures", "panel", *(one for one in ROOMS if one.startswith("storage."))])
def test_the_machinery_knows_nothing_of_vaes_or_digits(machine):
    assert behind(machine).isdisjoint({"data", "models", "fisher", "evaluation"})


@pytest.mark.parametrize("measure", ["evaluation", "fisher"])
def test_what_measures_stands_on_models_and_data(measure):
    assert {"models", "data"} <= ROOMS[measure]


def test_labels_are_the_same_in_both_rooms_that_know_them():
    assert range(CLASSES) == LABELS
