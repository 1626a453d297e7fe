"""tools/release.py and release_studies.py: what they write is what lies here, and outputs of other code fail them."""

import shutil

import nbformat
import pytest
import release
import release_studies
from conftest import REPOSITORY


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A project in miniature: 1_one.ipynb with a helper, 2_study.ipynb with a package besides."""
    for name in ("notebooks/amnesia/models.py", "notebooks/studies/amnesia_studies/logs.py"):
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
    ("amnesia/models.py", "1", "2", "one study"), ("studies/amnesia_studies/logs.py", "1", "2", "study")])
def test_outputs_that_are_older_than_their_code_fail_the_release(elsewhere, file, old, new, changed):
    for path in elsewhere.rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata["code"] = release.code_digest(path)           # as execute() notes it
        nbformat.write(notebook, path)
    release.check_outputs()
    rewrite(elsewhere / "notebooks" / file, old, new)
    if changed:
        with pytest.raises(SystemExit, match=", ".join(f".*{name}" for name in changed.split())):
            release.check_outputs()
    else:
        release.check_outputs()


def test_the_pages_are_what_the_tools_write(tmp_path, monkeypatch):
    pages = [path.relative_to(REPOSITORY) for path in
             (release.FRONT, release.HOW_TO, release.STUDIED, *(REPOSITORY / "notebooks").rglob("[0-9]*_*.ipynb"))]
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
