"""The notebooks as they are committed, their questions, and what they print of the released files."""

import base64
import hashlib
import itertools
import re
import textwrap

import nbformat
import pytest
import torch
from cells import FEW, STEMS, code, execute
from conftest import RELEASED, REPOSITORY

PATHS = sorted((REPOSITORY / "notebooks").rglob("[0-9]*_*.ipynb"))
BLANK = re.compile(r"^(\w+) = None +# your answer.*$", re.MULTILINE)
FOLDED = re.compile(r"<details><summary>Answer</summary>\n\n```python\n(.*?)\n```", re.DOTALL)
SAID = re.compile(r"^(Right|Not yet right|Not answered yet): ", re.MULTILINE)


def read(stem):
    return nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4).cells


def printed(cells):
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder for what the questions are asked of: each notebook's file is made for the next one."""
    return str(tmp_path_factory.mktemp("questions"))


@pytest.mark.slow
@pytest.mark.usefixtures("with_few", "no_figures")
@pytest.mark.parametrize("stem", STEMS)
def test_a_question_tells_a_blank_a_wrong_and_the_folded_answer_and_the_code_of_the_exercises_runs(begun, capsys, stem):
    answers = [FOLDED.match(after.source)[1] for cell, after in itertools.pairwise(read(stem)) if BLANK.search(cell.source)]
    cells, unused = [], [*answers]
    for source in code(stem):
        cells.append(source)
        if blank := BLANK.search(source):                   # answered three times
            cells += [BLANK.sub(f"{blank[1]} = 'wrong'", source), source.replace(blank[0], unused.pop(0))]
    cells += map(textwrap.dedent, re.findall(r"```python\n(.*?)```", read(stem)[-1].source, re.DOTALL))
    execute(cells, workspace=begun, **{**FEW[stem[:2]], "n_per_class": 40})
    said = ["Not answered yet", "Not yet right", "Right"] * len(answers)
    assert answers and SAID.findall(capsys.readouterr().out) == said


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_is_committed_is_executed_clean_small_unanswered_and_told_to_those_who_do_not_see(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "\r" not in printed(cells) and "widgets" not in notebook.metadata and path.stat().st_size < 1_500_000
    for cell in cells:
        assert not BLANK.search(cell.source) or printed([cell]).startswith("Not answered yet: "), cell.source
        for place, output in enumerate(cell.outputs):
            assert output.output_type != "error"
            if "image/png" in output.get("data", {}):
                content, alt = base64.b64decode(output.data["image/png"]), output.metadata["image/png"]["alt"]
                assert content.startswith(b"\x89PNG\r\n") and len(content) < 400_000
                assert len(alt) > 20 and output.data["text/plain"] == alt and "text/html" in cell.outputs[place + 1].data


def test_what_the_five_print_is_what_the_released_files_hold():
    """Whatever stands in both: F's total, the ends of the curves, twins' difference, every digest."""
    said = {stem[:2]: printed(read(stem)) for stem in STEMS}
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
    for path in (REPOSITORY / "figures" / "released").rglob("*.*"):
        assert path.stat().st_size < (4_000_000 if path.suffix == ".html" else 400_000), path
