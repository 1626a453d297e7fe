"""Files: whole or not there, checked before they are believed, never mixed up, never lost; and where they lie."""

import errno
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import sleep

import pytest
import torch
from conftest import RELEASED

from amnesia import CVAE, Classifier, Saved, Stage, Workspace, WorkspaceError, checkpoints, stages

SETTINGS = {"steps": 3, "seed": 0}
CONTENT = {"state": {"w": torch.arange(1000.0)}, "config": {}, "metrics": {"terms": [1.0, 2.0]}}
CPU = torch.device("cpu")


def save(store, name="cvae.pt", made_from=(), **settings):
    return Stage(store, name, {**SETTINGS, **settings}, made_from).save(**CONTENT)


def test_what_is_saved_or_released_is_plain_and_loads_again(store, cvae):
    saved = Stage(store, "cvae.pt", SETTINGS).save(state=cvae.state_dict(), config=cvae.config, metrics={})
    assert torch.load(saved.path, weights_only=True)["kind"] == "cvae"
    assert saved.digest == store.load("cvae.pt").digest == hashlib.sha256(saved.path.read_bytes()).hexdigest()
    rebuilt = store.load("cvae.pt").build(CVAE, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(rebuilt.parameters(), cvae.parameters(), strict=True))
    with pytest.raises(WorkspaceError, match=r"cvae\.pt holds no Classifier"):
        store.load("cvae.pt").build(Classifier, "cpu")
    assert all(Saved(path).settings for path in [*RELEASED.rglob("*.pt"), *RELEASED.rglob("evaluation-*.json")])


@pytest.mark.parametrize(("name", "maker"), [
    ("cvae.pt", "01"), ("fim-cvae.pt", "02"), ("fim-amnesiac-0.pt", "02"), ("amnesiac-0.pt", "03"), ("samples-0.pt", "04"),
    ("evaluation-0.json", "05"), ("classifier.pt", "")])
def test_a_missing_or_foreign_file_is_refused_with_the_notebook_that_makes_it_and_kept(store, name, maker):
    path, foreign = store.checkpoints / name, io.BytesIO()
    torch.save({"name": name, "settings": {}, "lineage": {}, "state": Path()}, foreign)     # an object, which could run code
    for bad in (None, b"", b"PK", b"[" * 5000, b"{}", b"[1]", save(store, "another.pt").path.read_bytes(), foreign.getvalue()):
        if bad is not None:
            path.write_bytes(bad)
        with pytest.raises(WorkspaceError, match=rf"{name} .*{maker and 'Run ' + maker}") as caught:
            store.load(name)
        assert "elete" not in str(caught.value) and (bad is None or path.read_bytes() == bad)


def test_cut_off_and_flipped_bytes_are_refused_or_change_nothing(store):
    path = save(store).path
    good, refused = path.read_bytes(), 0
    flipped = [good[:i] + bytes([good[i] ^ 0x10]) + good[i + 1:] for i in range(0, len(good), 29)]
    for bad in [good[:length] for length in range(0, len(good), 499)] + flipped:
        path.write_bytes(bad)
        try:
            saved = store.load("cvae.pt")                   # where zip fills up: nothing that counts
            assert len(bad) == len(good) and torch.equal(saved.state["w"], CONTENT["state"]["w"]) and saved.settings == SETTINGS
        except WorkspaceError:
            refused += 1
    assert refused > len(good) / 499 + len(flipped) / 2
    path = Stage(store, "evaluation-0.json", SETTINGS).save(original={"entropy": 0.1}).path
    assert store.load(path.name).original == {"entropy": 0.1}
    path.write_text(path.read_text().replace("0.1", "0.9"))
    with pytest.raises(WorkspaceError, match=path.name):
        store.load(path.name)


def test_what_was_made_from_another_file_is_refused_or_made_again(store, capsys):
    """And a missing input is taken from the released ones."""
    old = save(store)
    made, new = save(store, "fim-cvae.pt", [old]), save(store, seed=1)
    assert store.load("fim-cvae.pt", made_from=[old]).digest == made.digest
    with pytest.raises(WorkspaceError, match=r"fim-cvae\.pt was not made from this .*cvae\.pt.*Run 02_compute_fim"):
        store.load("fim-cvae.pt", made_from=[new])
    assert Stage(store, "fim-cvae.pt", SETTINGS, [old]).load().digest == made.digest
    assert not Stage(store, "fim-cvae.pt", SETTINGS, [old], overwrite=True).load()
    for settings, source, said in (({"steps": 4}, old, "steps=4 (was 3)"), ({}, new, "another cvae.pt")):
        assert not Stage(store, "fim-cvae.pt", SETTINGS | settings, [source]).load() and said in capsys.readouterr().out
    store.released.mkdir()
    new.path.rename(store.released / "cvae.pt")
    assert store.load("cvae.pt").digest == new.digest and "released" in capsys.readouterr().out


def test_what_is_replaced_is_kept_beside_by_three_that_finish_at_once_too(store, monkeypatch):
    write = stages.write
    monkeypatch.setattr(stages, "write", lambda *file: sleep(0.02) or write(*file))      # so that they meet
    with ThreadPoolExecutor() as pool:
        *_, last = pool.map(lambda seed: save(store, seed=seed), (1, 2, 3))
    files = {path: path.read_bytes() for path in store.checkpoints.glob("*.pt")}
    assert {torch.load(path)["settings"]["seed"] for path in files} == {1, 2, 3} and len(files) == 3
    save(store, **Saved(last.path).settings)                # the same again: nothing to keep
    assert files == {path: path.read_bytes() for path in store.checkpoints.glob("*.pt")}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("owner", "name"), [(Path, "read_bytes"), (Path, "write_bytes"), (os, "replace")])
def test_a_drive_that_refuses_is_asked_once_more_and_what_was_there_stays_whole(store, monkeypatch, owner, name, times):
    monkeypatch.setattr(checkpoints.time, "sleep", lambda seconds: None)
    before = save(store).path.read_bytes()
    function, errors = getattr(owner, name), [OSError(errno.EIO, "Input/output error")] * times

    def refusing(path, *more):
        if errors:
            _ = name == "write_bytes" and function(path, b"half")
            raise errors.pop()
        return function(path, *more)

    with monkeypatch.context() as patch, suppress(*[WorkspaceError, OSError][:2 * times - 2]):
        patch.setattr(owner, name, refusing)
        assert save(store, seed=1).digest == store.load("cvae.pt").digest and times == 1
    assert not errors and not [*store.checkpoints.glob(".*.tmp")]
    files = [path.read_bytes() for path in store.checkpoints.glob("cvae*.pt")]
    assert before in files and all(checkpoints.unpack("cvae.pt", whole) for whole in files)


def test_progress_that_cannot_be_saved_costs_no_run_and_a_damaged_one_is_refused(store, monkeypatch, capsys):
    parts, stage = {"state": {"w": torch.ones(1)}}, Stage(store, "cvae.pt", SETTINGS)
    monkeypatch.setattr(checkpoints.time, "sleep", lambda seconds: None)
    stage.save_progress(parts, 7, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, content: path.read_bytes())       # there is no such file
        stage.save_progress(parts, 8, CPU)
    assert "goes on" in capsys.readouterr().out and stage.resume(parts, CPU) == 7
    assert Stage(store, "cvae.pt", SETTINGS | {"steps": 4}).resume(parts, CPU) == 0       # of another run
    stage.unfinished.write_bytes(stage.unfinished.read_bytes()[:500])
    with pytest.raises(WorkspaceError, match=r"unfinished\.pt"):
        stage.resume(parts, CPU)


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Where Drive would be mounted, once it has My Drive; the project lies beside it."""
    drive = tmp_path / "content" / "drive"
    drive.mkdir(parents=True)
    monkeypatch.setattr(checkpoints, "HOME", tmp_path / "project")
    monkeypatch.setattr(checkpoints, "DRIVE", drive)
    monkeypatch.setattr(os.path, "ismount", lambda path: (path / "MyDrive").exists())
    return drive


def test_where_a_workspace_lies(drive, tmp_path, monkeypatch):
    assert Workspace().folder == Workspace(None).folder == tmp_path / "project"
    assert Workspace("mine").folder == tmp_path / "project" / "mine"    # whatever folder a kernel was started in
    (drive / "MyDrive").mkdir()
    assert Workspace().folder == drive / "MyDrive" / "selective-amnesia"
    assert Workspace(use_drive=False).folder == tmp_path / "project"
    monkeypatch.setenv("AMNESIA_WORKSPACE", str(tmp_path / "chosen"))
    assert Workspace().folder == tmp_path / "chosen" and Workspace(tmp_path / "asked").folder == tmp_path / "asked"
    store = Workspace(dataset="FashionMNIST")
    assert store.checkpoints == tmp_path / "chosen" / "checkpoints" / "FashionMNIST"
    assert store.released.name == store.figures.name == "FashionMNIST"
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match=r"file/inside.*could not be written"):
        Workspace(tmp_path / "file" / "inside")


def test_below_a_drive_that_is_not_mounted_nothing_is_made(drive, tmp_path, capsys):
    """Not at the start, and not when it is lost under way; once it is back, what was trained is saved."""
    with pytest.raises(WorkspaceError, match="Drive is not mounted"):
        Workspace(drive / "MyDrive" / "mine")
    (drive / "MyDrive").mkdir()
    store = Workspace()
    stage = Stage(store, "cvae.pt", SETTINGS)
    drive.rename(tmp_path / "away")
    stage.save_progress({"state": CONTENT["state"]}, 1, CPU)
    assert "not mounted" in capsys.readouterr().out
    for use, *more in ((save, store), (store.load, "cvae.pt"), (store.save_figure, "a.png", b"")):
        with pytest.raises(WorkspaceError, match="Drive is not mounted"):
            use(*more)
    assert not drive.exists()
    (tmp_path / "away").rename(drive)
    assert torch.equal(stage.save(**CONTENT).state["w"], CONTENT["state"]["w"])
