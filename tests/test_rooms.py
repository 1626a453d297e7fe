"""The house of the helper: flat and small, and who may import whom. Read from the text, for a run would import it all."""

import ast
import io
import tokenize
from graphlib import TopologicalSorter

import pytest
from conftest import REPOSITORY

FILES = sorted((REPOSITORY / "notebooks" / "amnesia").rglob("*.py"))
TREES = {path.stem: ast.parse(path.read_text()) for path in FILES}


def code_lines(path):
    """How many lines hold code: neither blank, nor a comment, nor a docstring."""
    text = path.read_text()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
               tokenize.ENDMARKER}
    lines = {line for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in skipped
             for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_the_helper_is_small_and_flat():
    counts = {path.name: code_lines(path) for path in FILES}
    assert {path.parent.name for path in FILES} == {"amnesia"} and len(FILES) <= 12, len(FILES)
    assert sum(counts.values()) <= 981 and max(counts.values()) <= 200, (sum(counts.values()), counts)
    assert max(len(path.read_text().splitlines()) for path in FILES) <= 200


ROOMS = {name: {node.module or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level
                for alias in node.names} for name, tree in TREES.items() if name != "__init__"}


def behind(one):
    """Every room that this one imports, and those that they import."""
    return ROOMS[one].union(*map(behind, ROOMS[one]))


def test_there_are_no_circles_and_nothing_of_the_studies():
    assert {*TopologicalSorter(ROOMS).static_order()} == {*ROOMS}       # raises CycleError
    assert not any("amnesia" in name for tree in TREES.values() for node in ast.walk(tree)
                   for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                                [alias.name for alias in node.names] if isinstance(node, ast.Import) else []))


@pytest.mark.parametrize("machine", ["training", "figures", "checkpoints", "stages", "device", "reading"])
def test_the_machinery_knows_nothing_of_vaes_or_digits(machine):
    assert behind(machine).isdisjoint({"data", "models", "fisher", "evaluation", "parameters"})
