"""tools/release.py and release_studies.py: what they write is what lies here, and outputs of other code fail them."""

import json
import re
import shutil
from importlib.metadata import version

import nbformat
import pytest
import release
import release_studies
from conftest import REPOSITORY


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A project in miniature in which the tools work: 1_one.ipynb with a helper, 2_study.ipynb with a package besides."""
    for name in ("notebooks/amnesia/storage/disk.py", "notebooks/studies/amnesia_studies/sweep.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("WORD = 1\n")
    cells = [nbformat.v4.new_markdown_cell("Words"), nbformat.v4.new_code_cell('REPO_URL = ""'),
             nbformat.v4.new_code_cell("print(6 * 7)")]
    for name in ("notebooks/1_one.ipynb", "notebooks/studies/2_study.ipynb"):
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / name)
    monkeypatch.setattr(release, "REPOSITORY", tmp_path)
    return tmp_path


def rewrite(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(("file", "old", "new", "changed"), [
    ("1_one.ipynb", "Words", "Other words", ""), ("1_one.ipynb", r"\"\"", r"\"https://github.com/owner/name\"", ""),
    ("1_one.ipynb", "6 * 7", "6 * 8", "one"), ("studies/2_study.ipynb", "6 * 7", "6 * 8", "study"),
    ("amnesia/storage/disk.py", "1", "2", "one study"), ("studies/amnesia_studies/sweep.py", "1", "2", "study")])
def test_a_change_of_code_is_a_change_of_the_digests_that_it_matters_to(elsewhere, file, old, new, changed):
    notebooks = {"one": elsewhere / "notebooks" / "1_one.ipynb", "study": elsewhere / "notebooks/studies/2_study.ipynb"}
    before = {name: release.code_digest(path) for name, path in notebooks.items()}
    rewrite(elsewhere / "notebooks" / file, old, new)
    assert [name for name, path in notebooks.items() if release.code_digest(path) != before[name]] == changed.split()


@pytest.mark.slow
def test_outputs_that_are_older_than_their_code_fail_the_release(elsewhere, monkeypatch):
    monkeypatch.setenv("AMNESIA_WORKSPACE", "")
    for path in sorted(elsewhere.rglob("*.ipynb")):
        release.execute(path, elsewhere)
        assert "42" in path.read_text()
    release.check_outputs()
    rewrite(elsewhere / "notebooks/studies/2_study.ipynb", "6 * 7", "6 * 8")
    with pytest.raises(SystemExit, match=r"^Older than their code are the outputs of 2_study\. tools/release\.py runs"):
        release.check_outputs()


def test_the_release_keeps_what_was_installed(elsewhere, monkeypatch):
    """All that takes time is left out."""
    def execute(path, workspace):
        for folder in ("checkpoints", "figures"):
            (workspace / folder).mkdir(exist_ok=True)
        for digit in range(10):
            (workspace / "checkpoints" / f"evaluation-{digit}.json").write_text('{"versions": {"torch": "2.6"}}')
        return 1.0

    released = elsewhere / "checkpoints" / "released"
    released.mkdir(parents=True)
    monkeypatch.setattr(release, "execute", execute)
    for owner, name in ((release, "run"), (release.play, "write"), (release.drawing, "draw")):
        monkeypatch.setattr(owner, name, lambda *_, **__: None)
    release.release(train=True)
    lines = (released / "pip-freeze.txt").read_text().splitlines()
    assert re.fullmatch(r"# Python 3\.\d+\.\d+", lines[0]) and f"nbformat=={version('nbformat')}" in lines
    assert json.loads((released / "times.json").read_text())["versions"] == {"torch": "2.6"}


def test_the_pages_are_what_the_tools_write(tmp_path, monkeypatch):
    pages = [path.relative_to(REPOSITORY) for path in
             (release.FRONT, release.HOW_TO, release.STUDIED, *(REPOSITORY / "notebooks").rglob("*_*.ipynb"))]
    for path in [*pages, "pyproject.toml"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / path, tmp_path / path)
    (tmp_path / "checkpoints").symlink_to(REPOSITORY / "checkpoints")
    monkeypatch.setattr(release, "REPOSITORY", tmp_path)
    for owner, name in ((release, "FRONT"), (release, "HOW_TO"), (release, "STUDIED"), (release_studies, "STUDIED")):
        monkeypatch.setattr(owner, name, tmp_path / getattr(owner, name).relative_to(REPOSITORY))
    release.fill_pages()
    release_studies.fill_page()
    assert [str(page) for page in pages if (tmp_path / page).read_text() != (REPOSITORY / page).read_text()] == []
