"""The pages say what the released run's files say, and point at files that exist."""

import json
import re
import tomllib

import nbformat
import scaling
from conftest import REPOSITORY
from release import FRONT, HOW_TO, NOTEBOOKS, STUDIED, addressed, badges, read
from side_by_side import PAGE, RESULT, tables

NUMBERED = sorted((REPOSITORY / "notebooks").rglob("[0-9]*_*.ipynb"))


def test_the_front_page_is_short():
    text = FRONT.read_text()
    words = (re.sub("<a href.*</a>", "", text) + "".join(badges(path, "owner/name") for path in NOTEBOOKS)).split()
    assert len(words) <= 700 and len(re.findall(r"^\|[ -:|]*--[ -:|]*\|$", text, re.MULTILINE)) <= 2


def test_badges_lead_to_colab_and_kaggle_once_the_address_is_known_and_none_is_shown_before():
    repository = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["amnesia"]["repository"]
    lines = "\n".join(badges(path, repository) for path in NOTEBOOKS).strip()
    assert f"badges: written by tools/release.py -->\n{lines}\n<!-- end" in FRONT.read_text()
    for path in NUMBERED:
        place, notebook = f"owner/name/blob/main/{path.relative_to(REPOSITORY)}", path.read_text()
        known = addressed(path, notebook, "owner/name")
        title, parameters = (cell.source for cell in nbformat.reads(known, as_version=4).cells[:2])
        assert re.findall('href="([^"]+)"', title.splitlines()[1]) == [
            f"https://colab.research.google.com/github/{place}",
            f"https://kaggle.com/kernels/welcome?src=https://github.com/{place}"], path
        assert 'REPO_URL = "https://github.com/owner/name"  #@param' in parameters
        assert addressed(path, known, repository) == addressed(path, notebook, repository) == notebook


def test_the_benchmarks_page_is_that_of_its_files_which_reach_what_they_promise():
    results, cost = (json.loads(path.read_text()) for path in (RESULT, scaling.RESULT))
    assert tables(results) in PAGE.read_text() and scaling.table(cost) in PAGE.read_text()
    trained, forgotten = ([run["quality"] for result in results.values() for run in result["stages"][stage]["ours"]]
                          for stage in ("01 to a test −ELBO of 96.65", "03 forget"))
    assert all(quality["test −ELBO"] <= 96.65 for quality in trained)
    assert all(abs(quality["P − grey"]) <= 0.02 and quality["H / grey"] >= 0.98 and quality["kept ELBO"] >= -0.15
               for quality in forgotten)
    seconds, memory = ([cost["samples"][str(n)][key] for n in (1000, 1_000_000)] for key in ("seconds", "memory_mb"))
    assert seconds[1] < 1100 * seconds[0] and memory[1] < 1.1 * memory[0]   # linear in time, flat in memory


def test_the_released_run_reaches_its_targets():
    assert read("times.json")["seconds"]["03_forget"] < 60
    for digit in range(10):
        result = read(f"evaluation-{digit}.json")
        before, after, grey = result["original"], result["amnesiac"], result["reference"]["grey"]
        assert before["forgotten_probability"] >= 0.90
        assert abs(after["forgotten_probability"] - grey["forgotten_probability"]) <= 0.02, digit
        assert after["entropy"] >= 0.98 * grey["entropy"], digit
        assert after["kept_accuracy"] >= before["kept_accuracy"] - 0.003, digit
        assert after["kept_accuracy_worst"] >= before["kept_accuracy_worst"] - 0.01, digit
        assert after["kept_elbo"] >= before["kept_elbo"] - 0.15, digit
        assert after["kept_frechet"] <= before["kept_frechet"] + 0.3, digit
        assert result["reference"]["real"]["kept_accuracy"] >= 0.995


def test_links_lead_somewhere_and_pictures_have_a_text_for_screen_readers():
    for path in (FRONT, HOW_TO, STUDIED, PAGE, REPOSITORY / "CONTRIBUTING.md", *NUMBERED):
        text = path.read_text()
        if path.suffix == ".ipynb":
            text = "\n".join(cell.source for cell in nbformat.reads(text, 4).cells if cell.cell_type == "markdown")
        for target in map("".join, re.findall(r"\]\(([^)#]+)|src=\"([^\"]+)", text)):
            assert target.startswith("https://") or (path.parent / target).exists(), (path, target)
        for picture in re.findall(r"<img [^>]*>", text):
            assert len(re.search(r'alt="([^"]*)"', picture)[1]) > 20, (path, picture)


def test_how_it_is_built_names_every_file_and_none_that_is_not_there():
    named = {*re.findall(r"`(\w+\.py)`", (REPOSITORY / "CONTRIBUTING.md").read_text().split("## How it is built")[1])}
    packages = {path.name for path in (REPOSITORY / "notebooks").glob("**/amnesia*/[a-z]*.py")}
    assert packages <= named <= {path.name for folder in ("notebooks", "tools", "tests")
                                 for path in (REPOSITORY / folder).rglob("*.py")}
