"""The pages say what the released run's files say, and point at files that exist."""

import json
import re
import tomllib

import nbformat
import pytest
import scaling
from conftest import REPOSITORY
from release import FRONT, HOW_TO, NOTEBOOKS, STUDIED, addressed, badges, read
from side_by_side import PAGE, RESULT, tables


def test_another_digit_takes_under_a_minute_as_the_page_says():
    assert read("times.json")["seconds"]["03_forget"] < 60


def test_the_front_page_is_short():
    text = FRONT.read_text()
    words = (re.sub("<a href.*</a>", "", text) + "".join(badges(path, "owner/name") for path in NOTEBOOKS)).split()
    assert len(words) <= 700 and len(re.findall(r"^\|[ -:|]*--[ -:|]*\|$", text, re.MULTILINE)) <= 2


def test_badges_lead_to_colab_and_kaggle_once_the_address_is_known_and_none_is_shown_before():
    repository = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["amnesia"]["repository"]
    lines = "\n".join(badges(path, repository) for path in NOTEBOOKS).strip()
    assert f"badges: written by tools/release.py -->\n{lines}\n<!-- end" in FRONT.read_text()
    for path in sorted((REPOSITORY / "notebooks").rglob("[0-9]*_*.ipynb")):
        place, notebook = f"owner/name/blob/main/{path.relative_to(REPOSITORY)}", path.read_text()
        known = addressed(path, notebook, "owner/name")
        title, parameters = (cell.source for cell in nbformat.reads(known, as_version=4).cells[:2])
        assert re.findall('href="([^"]+)"', title.splitlines()[1]) == [
            f"https://colab.research.google.com/github/{place}",
            f"https://kaggle.com/kernels/welcome?src=https://github.com/{place}"], path
        assert 'REPO_URL = "https://github.com/owner/name"  #@param' in parameters
        assert addressed(path, known, repository) == addressed(path, notebook, repository) == notebook


def test_the_comparison_is_that_of_its_file():
    results = json.loads(RESULT.read_text())
    assert tables(results) in PAGE.read_text()
    runs = {stage: [run["quality"] for result in results.values() for run in result["stages"][stage]["ours"]]
            for stage in ("01 to a test −ELBO of 96.65", "03 forget")}
    assert all(quality["test −ELBO"] <= 96.65 for quality in runs["01 to a test −ELBO of 96.65"])  # really reached
    for quality in runs["03 forget"]:
        assert abs(quality["P − grey"]) <= 0.02 and quality["H / grey"] >= 0.98 and quality["kept ELBO"] >= -0.15


def test_how_cost_grows_is_that_of_its_file():
    result = json.loads(scaling.RESULT.read_text())
    assert scaling.table(result) in (REPOSITORY / "benchmarks" / "README.md").read_text()
    seconds, memory = ([result["samples"][str(n)][key] for n in (1000, 1_000_000)] for key in ("seconds", "memory_mb"))
    assert seconds[1] < 1100 * seconds[0] and memory[1] < 1.1 * memory[0]   # linear in time, flat in memory


@pytest.mark.parametrize("digit", range(10))
def test_the_released_run_reaches_its_targets(digit):
    result = read(f"evaluation-{digit}.json")
    before, after, grey = result["original"], result["amnesiac"], result["reference"]["grey"]
    assert before["forgotten_probability"] >= 0.90
    assert abs(after["forgotten_probability"] - grey["forgotten_probability"]) <= 0.02
    assert after["entropy"] >= 0.98 * grey["entropy"]
    assert after["kept_accuracy"] >= before["kept_accuracy"] - 0.003
    assert after["kept_accuracy_worst"] >= before["kept_accuracy_worst"] - 0.01
    assert after["kept_elbo"] >= before["kept_elbo"] - 0.15
    assert after["kept_frechet"] <= before["kept_frechet"] + 0.3
    assert result["reference"]["real"]["kept_accuracy"] >= 0.995


PAGES = [str(path.relative_to(REPOSITORY)) for path in (FRONT, HOW_TO, STUDIED, PAGE, REPOSITORY / "CONTRIBUTING.md",
                                                        *(REPOSITORY / "notebooks").rglob("*.ipynb"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = REPOSITORY / page
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)|src=\"([^\"]+)", text):
        target = "".join(target)
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_how_it_is_built_names_every_file_and_none_that_is_not_there():
    named = {*re.findall(r"`(\w+\.py)`", re.search("^## How it is built$.*", HOW_TO.read_text(), re.M | re.S)[0])}
    packages = {path.name for folder in ("amnesia", "studies/amnesia_studies")
                for path in (REPOSITORY / "notebooks" / folder).rglob("[a-z]*.py") if path.parent.name != "methods"}
    others = {path.name for folder in ("tools", "tests") for path in (REPOSITORY / folder).glob("*.py")}
    assert packages <= named <= packages | others | {"run.py"}


def test_every_picture_has_a_text_for_screen_readers():
    text = FRONT.read_text() + STUDIED.read_text()
    pictures = re.findall(r"<img [^>]*>", text)
    assert sum('src="figures/' in picture for picture in pictures) == 4 and "![" not in text
    assert all(len(re.search(r'alt="([^"]*)"', picture)[1]) > 20 for picture in pictures)
