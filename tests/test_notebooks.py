"""The notebooks as they are committed, their questions, and what they print of the released files."""

import ast
import base64
import hashlib
import html
import itertools
import re
import textwrap

import nbformat
import pytest
import torch
from cells import FEW, STEMS, code, execute
from conftest import RELEASED, REPOSITORY

NOTEBOOKS = [REPOSITORY / "notebooks" / f"{stem}.ipynb" for stem in STEMS]
ALL = [*NOTEBOOKS, *sorted((REPOSITORY / "notebooks" / "studies").glob("*.ipynb"))]
of_all = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def pictures(notebook):
    """The bytes of every picture that a notebook shows."""
    return [base64.b64decode(output["data"]["image/png"]) for output in outputs(notebook)
            if "image/png" in output.get("data", {})]


BLANK = re.compile(r"^(\w+) = None +# your answer.*$", re.MULTILINE)
FOLDED = re.compile(r"<details><summary>Answer</summary>\n\n```python\n(.*?)\n```", re.DOTALL)
SAID = re.compile(r"^(Right|Not yet right|Not answered yet): ", re.MULTILINE)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder for what the questions are asked of: each notebook's file is made for the next one."""
    return str(tmp_path_factory.mktemp("questions"))


@pytest.mark.slow
@pytest.mark.usefixtures("with_few", "no_figures")
@pytest.mark.parametrize("stem", STEMS)
def test_a_question_tells_a_blank_a_wrong_and_the_folded_answer_and_the_code_of_the_exercises_runs(begun, capsys, stem):
    notebook = nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    answers = iter([FOLDED.match(after.source)[1] for cell, after in itertools.pairwise(notebook) if BLANK.search(cell.source)])
    cells, asked = [], 0
    for source in code(stem):
        cells.append(source)
        if blank := BLANK.search(source):                   # answered three times
            asked += 1
            cells += [BLANK.sub(f"{blank[1]} = 'wrong'", source), source.replace(blank[0], next(answers))]
    exercises = [textwrap.dedent(found) for found in re.findall(r"```python\n(.*?)```", notebook[-1].source, re.DOTALL)]
    execute([*cells, *exercises], workspace=begun, **{**FEW[stem[:2]], "n_per_class": 40})
    assert asked and SAID.findall(capsys.readouterr().out) == ["Not answered yet", "Not yet right", "Right"] * asked


@of_all
def test_what_is_committed_is_executed_clean_small_and_unanswered(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for output in outputs(notebook))
    assert "\r" not in text(notebook) and "widgets" not in notebook.metadata
    assert path.stat().st_size < 1_500_000 and max(map(len, pictures(notebook))) < 400_000
    assert "pyplot" not in "".join(cell.source for cell in cells)       # figures start from the project's style
    for cell in cells:
        if BLANK.search(cell.source):
            assert "".join(output.get("text", "") for output in cell.outputs).startswith("Not answered yet: "), cell.source


@of_all
def test_what_does_not_see_is_told(path):
    """Every stored picture is a PNG with its words, which are the code's; every column of a table has its heading."""
    for cell in nbformat.read(path, as_version=4).cells:
        patterns = ["".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".*"
                            for part in getattr(word.value, "values", [word.value]))
                    for word in (ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ())
                    if isinstance(word, ast.keyword) and word.arg == "alt"]
        for place, output in enumerate(cell.get("outputs", [])):
            if "image/png" in output.get("data", {}):
                alt, words = output.metadata["image/png"]["alt"], cell.outputs[place + 1].data
                assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG\r\n")
                assert output.data["text/plain"] == alt and words.keys() == {"text/html"}
                assert html.unescape(words["text/html"]).endswith(f">{alt}</p>")
                assert any(re.fullmatch(pattern, alt, re.DOTALL) for pattern in patterns), alt
        tables = cell.source + "".join(f"\n{output.data['text/markdown']}" for output in cell.get("outputs", [])
                                       if "text/markdown" in output.get("data", {}))
        for heading in re.findall(r"^\|(.*)\|\n\|[-:| ]+\|$", tables, re.MULTILINE):
            assert all(word.strip() for word in heading.split("|")), heading


def test_what_the_five_print_is_what_the_released_files_hold():
    """Whatever stands in both: F's total, the ends of the curves, twins' difference, every digest."""
    said = {path.stem[:2]: text(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    fim, amnesiac, samples = (torch.load(RELEASED / name, weights_only=True)
                                    for name in ("fim-cvae.pt", "amnesiac-0.pt", "samples-0.pt"))
    assert f"total Fisher information {fim['metrics']['total']:,.0f}," in said["02"]
    history = amnesiac["metrics"]
    for key in ("P", "H"):
        assert f"{key}: {history[key][0]:.3f} before, {history[key][-1]:.3f} after" in said["03"]
    for term, values in history["terms"].items():
        assert f"{term} {values[-80:].mean():.2f}" in said["03"]
    a, b = (samples["state"][title][1:].int() for title in ("original", "amnesiac"))
    assert f"kept: twins differ by {(a - b).abs().float().mean():.2f} of 255" in said["04"]
    chain = re.findall(r"^(?:  made from )?(\S+\.(?:pt|json))  \((\w{12})\)$", said["05"], re.MULTILINE)
    assert {name for name, _ in chain} == {"evaluation-0.json", "cvae.pt", "amnesiac-0.pt", "samples-0.pt", "classifier.pt"}
    for name, digest in chain:
        assert hashlib.sha256((RELEASED / name).read_bytes()).hexdigest().startswith(digest), name


def test_committed_figures_are_small():
    figures = [path for path in (REPOSITORY / "figures" / "released").rglob("*") if path.is_file()]
    most = {".png": 400_000, ".gif": 400_000, ".svg": 150_000, ".html": 4_000_000}
    assert figures and all(path.stat().st_size < most.get(path.suffix, 0) for path in figures)
