"""tools/release.py and release_studies.py: what they write is what lies here, and outputs of other code fail them."""

import shutil
from contextlib import nullcontext

import nbformat
import pytest
import release
import release_studies
from conftest import REPOSITORY


@pytest.mark.parametrize(("file", "old", "new", "changed"), [
    ("1_one.ipynb", "Words", "Other words", ""), ("1_one.ipynb", r"\"\"", r"\"https://github.com/owner/name\"", ""),
    ("1_one.ipynb", "6 * 7", "6 * 8", "one"),
    ("amnesia/models.py", "1", "2", "one.*study"), ("studies/amnesia_studies/logs.py", "1", "2", "study")])
def test_outputs_that_are_older_than_their_code_fail_the_release(tmp_path, monkeypatch, file, old, new, changed):
    """Of a project in miniature: a notebook with a helper, a study with a package besides."""
    monkeypatch.setattr(release, "REPOSITORY", tmp_path)
    folder, notebook = tmp_path / "notebooks", nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("Words"), nbformat.v4.new_code_cell('REPO_URL = ""'),
                      nbformat.v4.new_code_cell("print(6 * 7)")]
    for name in ("amnesia/models.py", "studies/amnesia_studies/logs.py"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("WORD = 1\n")
    for path in (folder / "1_one.ipynb", folder / "studies" / "2_study.ipynb"):
        nbformat.write(notebook, path)
        notebook.metadata["code"] = release.code_digest(path)           # as execute() notes it
        nbformat.write(notebook, path)
    release.check_outputs()
    assert old in (folder / file).read_text()
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    with pytest.raises(SystemExit, match=changed) if changed else nullcontext():
        release.check_outputs()


def test_the_pages_are_what_the_tools_write(tmp_path, monkeypatch):
    pages = [release.FRONT, release.HOW_TO, release.STUDIED, *(REPOSITORY / "notebooks").rglob("[0-9]*_*.ipynb")]
    copies = {path: tmp_path / path.relative_to(REPOSITORY) for path in [*pages, REPOSITORY / "pyproject.toml"]}
    for path, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / "checkpoints").symlink_to(REPOSITORY / "checkpoints")
    for owner, name in ((release, "FRONT"), (release, "HOW_TO"), (release, "STUDIED"), (release_studies, "STUDIED")):
        monkeypatch.setattr(owner, name, copies[getattr(owner, name)])
    monkeypatch.setattr(release, "REPOSITORY", tmp_path)
    release.fill_pages()
    release_studies.fill_page()
    assert [str(page) for page in pages if copies[page].read_text() != page.read_text()] == []
