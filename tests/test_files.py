"""Files: whole or not there, checked before they are believed, never mixed up, never lost; and where they lie."""

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RELEASED

from amnesia import CVAE, Classifier, Saved, Stage, Workspace, WorkspaceError, checkpoints

SETTINGS = {"steps": 3, "seed": 0}
CONTENT = {"state": {"w": torch.arange(1000.0)}, "config": {}, "metrics": {"terms": [1.0, 2.0]}}


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(checkpoints.time, "sleep", lambda seconds: None)


def save(store, name="cvae.pt", made_from=(), seed=0, **content):
    return Stage(store, name, {**SETTINGS, "seed": seed}, made_from).save(**content or CONTENT)


def names(store):
    return sorted(path.name for path in store.checkpoints.iterdir() if path.suffix in (".pt", ".json"))


def test_what_is_saved_is_plain_and_loads_again(store, cvae):
    saved = save(store, state=cvae.state_dict(), config=cvae.config, metrics={})
    content = torch.load(saved.path, weights_only=True)
    assert {"kind", "state", "config", "lineage", "metrics", "versions"} <= content.keys() and content["kind"] == "cvae"
    assert saved.digest == store.load("cvae.pt").digest == hashlib.sha256(saved.path.read_bytes()).hexdigest()
    rebuilt = store.load("cvae.pt").build(CVAE, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(rebuilt.parameters(), cvae.parameters(), strict=True))
    with pytest.raises(WorkspaceError, match=r"cvae\.pt.*Classifier"):
        store.load("cvae.pt").build(Classifier, "cpu")
    result = save(store, "evaluation-0.json", original={"entropy": 0.1})
    assert json.loads(result.path.read_text())["original"] == store.load("evaluation-0.json").original == {"entropy": 0.1}


def test_every_released_file_is_read_as_it_is():
    released = [*RELEASED.rglob("*.pt"), *RELEASED.rglob("evaluation-*.json")]
    saved = {path.name: Saved(path) for path in released}
    assert len(released) >= 16 and all(file.settings for file in saved.values())
    assert saved["cvae.pt"].build(CVAE, "cpu").generate(torch.arange(10)).shape == (10, 784)
    assert saved["classifier.pt"].build(Classifier, "cpu")(torch.rand(2, 784)).shape == (2, 10)


@pytest.mark.parametrize(("name", "notebook"), [
    ("cvae.pt", "01_train_cvae"), ("fim-cvae.pt", "02_compute_fim"), ("amnesiac-0.pt", "03_forget"),
    ("samples-0.pt", "04_sample"), ("evaluation-0.json", "05_evaluate"), ("fim-amnesiac-0.pt", "02_compute_fim")])
def test_a_file_that_is_missing_or_no_good_names_the_notebook_and_is_kept(store, name, notebook):
    with pytest.raises(WorkspaceError, match=f"{name} .*Run .*{notebook}"):
        store.load(name)
    for bad in (b"", b"PK", b"[" * 5000, b"{}", b"[1]", pickle.dumps({"state": {}})):
        (store.checkpoints / name).write_bytes(bad)
        with pytest.raises(WorkspaceError, match=f"{name} .*Run .*{notebook}") as caught:
            store.load(name)
        assert "elete" not in str(caught.value) and (store.checkpoints / name).read_bytes() == bad


def test_a_missing_input_is_taken_from_the_released_ones_and_that_is_said(store, capsys):
    saved = save(store)
    store.released.mkdir()
    saved.path.rename(store.released / "cvae.pt")
    assert store.load("cvae.pt").path.parent == store.released
    assert f"released file {store.released}" in capsys.readouterr().out


def test_cut_off_and_flipped_bytes_are_refused_or_change_nothing(store):
    """Cut anywhere, a bit flipped in every region of the file; an edited figure of an evaluation."""
    path = save(store).path
    good = path.read_bytes()
    for length in range(0, len(good), 97):
        path.write_bytes(good[:length])
        with pytest.raises(WorkspaceError, match=r"cvae\.pt is damaged.*01_train_cvae"):
            store.load("cvae.pt")
    refused = 0
    for position in range(0, len(good), 13):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1:])
        try:
            loaded = store.load("cvae.pt")
            assert torch.equal(loaded.state["w"], CONTENT["state"]["w"]) and loaded.settings == SETTINGS  # zip's padding
        except WorkspaceError:
            refused += 1
    assert refused > len(good) / 13 / 2
    path = save(store, "evaluation-0.json", original={"entropy": 0.1}).path
    path.write_text(path.read_text().replace("0.1", "0.9"))
    with pytest.raises(WorkspaceError, match=r"evaluation-0\.json"):
        store.load("evaluation-0.json")


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def test_foreign_misnamed_and_malicious_files_are_refused(store, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path, fim = store.checkpoints / "cvae.pt", save(store, "fim-cvae.pt").path.read_bytes()
    for content in (lambda: path.write_bytes(fim), lambda: torch.save({"model": {}}, path),
                    lambda: torch.save(torch.ones(3), path), lambda: torch.save({"state": Malicious()}, path),
                    lambda: torch.save(Malicious(), path, _use_new_zipfile_serialization=False)):
        content()
        with pytest.raises(WorkspaceError, match=r"cvae\.pt .*Run 01_train_cvae"):
            store.load("cvae.pt")
    assert not Path("pwned").exists()


def test_a_file_made_from_another_is_refused(store):
    old = save(store)
    save(store, "fim-cvae.pt", [old])
    new = save(store, seed=1)
    assert store.load("fim-cvae.pt", made_from=[old])
    with pytest.raises(WorkspaceError, match=r"fim-cvae\.pt was not made from this .*cvae\.pt.*Run 02_compute_fim"):
        store.load("fim-cvae.pt", made_from=[new])


def test_a_stage_is_done_only_with_the_same_settings_and_inputs(store, capsys):
    source = save(store)
    made = save(store, "fim-cvae.pt", [source])
    assert Stage(store, "fim-cvae.pt", SETTINGS, [source]).load().digest == made.digest
    assert not Stage(store, "fim-cvae.pt", SETTINGS, [source], overwrite=True).load()
    assert not Stage(store, "fim-cvae.pt", {**SETTINGS, "steps": 4}, [source]).load()
    assert "steps=4 (was 3)" in capsys.readouterr().out
    assert not Stage(store, "fim-cvae.pt", SETTINGS, [save(store, seed=1)]).load()
    assert "another cvae.pt" in capsys.readouterr().out


def test_a_replaced_file_is_kept_beside_and_a_finished_run_ends_with_its_own(store, capsys):
    stage, old = Stage(store, "cvae.pt", SETTINGS), save(store)
    before, new = old.path.read_bytes(), save(store, seed=1)
    kept = store.checkpoints / f"cvae.{old.digest[:8]}.pt"
    assert kept.read_bytes() == before != new.path.read_bytes() and str(kept) in capsys.readouterr().out
    save(store, seed=1)                                                 # the same again: nothing to keep
    assert names(store) == ["cvae.pt", kept.name] or names(store) == [kept.name, "cvae.pt"]
    mine = stage.save(**CONTENT)
    save(store, seed=2)                                                 # another tab
    assert stage.load().digest == mine.digest and stage.load().settings == SETTINGS


def finish(folder, seed, ready):
    """A process that has trained for long, and now saves, at the same moment as the others."""
    stage = Stage(Workspace(folder), "cvae.pt", {"seed": seed})
    ready.wait()
    stage.save(**{**CONTENT, "metrics": {"seed": seed}})


def test_three_that_finish_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")      # CUDA forbids forks
    for turn in range(3):
        ready, folder = context.Barrier(3), tmp_path / str(turn)
        processes = [context.Process(target=finish, args=(folder, seed, ready)) for seed in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        found = [torch.load(path, weights_only=True)["metrics"]["seed"] for path in (folder / "checkpoints").glob("*.pt")]
        assert sorted(found) == [0, 1, 2]


def test_a_write_that_dies_in_the_middle_leaves_what_was_there(store, monkeypatch):
    """The disk fills, or the process is ended; and what other programs left hidden here is theirs (31.3)."""
    theirs = store.checkpoints / ".syncthing.cvae.pt.tmp"
    theirs.write_bytes(b"half")
    os.utime(theirs, (0, 0))
    before, write = save(store).path.read_bytes(), Path.write_bytes

    def dying(error):
        def half(path, content):
            write(path, content[:len(content) // 2])
            raise error
        return half

    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):
        monkeypatch.setattr(Path, "write_bytes", dying(error))
        with pytest.raises((WorkspaceError, KeyboardInterrupt), match=r"cvae.*\.pt could not be written|^$"):
            save(store, seed=1)
        monkeypatch.undo()
        assert store.load("cvae.pt").path.read_bytes() == before
        left = [*store.checkpoints.glob(".*.tmp")]
        assert theirs in left and (len(left) == 1 or type(error) is KeyboardInterrupt)


def refused_once(function):
    calls = []

    def refusing(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")
        return function(*arguments)
    return refusing


def test_a_drive_that_refuses_for_a_moment_is_asked_again_and_else_nothing_is_called_damaged(store, monkeypatch):
    saved = save(store)
    for owner, name in ((Path, "read_bytes"), (Path, "write_bytes"), (os, "replace")):
        with monkeypatch.context() as patch:
            function = refused_once(getattr(owner, name))
            patch.setattr(owner, name, lambda *arguments, function=function: function(*arguments))
            assert save(store, seed=1).digest and store.load("cvae.pt").digest
    saved.path.unlink()
    saved.path.mkdir()
    monkeypatch.setattr(checkpoints, "there", lambda path: True)
    with pytest.raises(WorkspaceError, match=r"cvae\.pt could not be read") as caught:
        Saved(saved.path)
    assert "Move it away" not in str(caught.value)


def test_progress_that_cannot_be_saved_costs_no_run_and_a_damaged_one_is_refused(store, monkeypatch, capsys):
    parts, cpu = {"state": {"w": torch.ones(1)}}, torch.device("cpu")
    stage = Stage(store, "cvae.pt", SETTINGS)
    stage.save_progress(parts, 7, cpu)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "refused")))
        stage.save_progress(parts, 8, cpu)
    assert "goes on" in capsys.readouterr().out and stage.resume(parts, cpu) == 7
    assert Stage(store, "cvae.pt", {**SETTINGS, "steps": 4}).resume(parts, cpu) == 0       # of another run
    stage.unfinished.write_bytes(stage.unfinished.read_bytes()[:500])
    with pytest.raises(WorkspaceError, match=r"unfinished\.pt is damaged.*Move it away"):
        stage.resume(parts, cpu)


class Unsaved(CVAE):
    """No notebook's: it has no `config`."""

    def __init__(self):
        super().__init__(2, (4,))
        del self.config


@pytest.mark.parametrize("model", [lambda: torch.compile(CVAE(2, hidden=(4,)), backend="eager"), Unsaved],
                         ids=["compiled", "no config"])
def test_a_model_that_could_not_be_read_again_is_refused_before_it_is_trained(store, model):
    with pytest.raises(WorkspaceError, match="not trained"):
        Stage(store, "cvae.pt", SETTINGS).load(model=model())


def test_settings_that_could_not_be_read_again_replace_nothing(store):
    before = save(store).path.read_bytes()
    for bad in ({"steps": np.int64(3)}, {"path": Path("here")}):
        with pytest.raises((WorkspaceError, TypeError)):
            Stage(store, "cvae.pt", bad).save(**CONTENT)
        assert (store.checkpoints / "cvae.pt").read_bytes() == before and names(store) == ["cvae.pt"]


def test_a_workspace_is_a_path_that_can_be_written_and_names_stay_inside(store, tmp_path):
    for name in ("../cvae.pt", "/etc/passwd", "a/b.pt", ".hidden", "..", ""):
        with pytest.raises(ValueError, match="plain file name"):
            store.load(name)
    for folder in (None, 5, "", 2.5):
        with pytest.raises(ValueError, match="workspace="):
            Workspace(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"file/inside.*could not be written"):
        Workspace(str(tmp_path / "file" / "inside"))


def test_other_data_sets_have_a_folder_of_their_own(tmp_path):
    store = Workspace(tmp_path, dataset="FashionMNIST")
    assert store.checkpoints == tmp_path / "checkpoints" / "FashionMNIST" and store.figures.parent == tmp_path / "figures"
    assert store.released.name == "FashionMNIST" and store.data == tmp_path / "data"


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Where Drive would be mounted; nothing is there yet, and the project lies beside it."""
    drive, ismount = tmp_path / "content" / "drive", os.path.ismount
    monkeypatch.setattr(checkpoints, "HOME", tmp_path / "project")
    monkeypatch.setattr(checkpoints, "DRIVE", drive)
    monkeypatch.setattr(os.path, "ismount", lambda path: (drive / "MyDrive").exists() if path == drive else ismount(path))
    return drive


def test_where_a_workspace_lies(drive, tmp_path, monkeypatch):
    """A relative one is one place, whatever folder a kernel was started in (31.10)."""
    assert Workspace().folder == tmp_path / "project"
    for start in ("notebooks", "notebooks/studies"):
        (tmp_path / start).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / start)
        assert Workspace("mine").folder == tmp_path / "project" / "mine"
    (drive / "MyDrive").mkdir(parents=True)
    assert Workspace().folder == drive / "MyDrive" / "selective-amnesia"
    assert Workspace().save_seconds > Workspace(use_drive=False).save_seconds   # Drive keeps old versions
    assert Workspace(use_drive=False).folder == tmp_path / "project"
    monkeypatch.setattr(checkpoints, "HOME", drive / "MyDrive" / "project")     # the project itself lies on Drive
    assert Workspace().folder == drive / "MyDrive" / "project"
    monkeypatch.setenv("AMNESIA_WORKSPACE", str(tmp_path / "chosen"))
    assert Workspace().folder == tmp_path / "chosen" and Workspace(tmp_path / "asked").folder == tmp_path / "asked"


def test_below_a_drive_that_is_not_mounted_nothing_is_made(drive, tmp_path, capsys):
    """Not at the start, and not when it is lost under way; once it is back, what was trained is saved."""
    drive.mkdir(parents=True)
    with pytest.raises(WorkspaceError, match="Drive is not mounted"):
        Workspace(drive / "MyDrive" / "mine")
    assert Workspace().folder == tmp_path / "project" and not [*drive.iterdir()]
    (drive / "MyDrive").mkdir()
    store = Workspace()
    stage = Stage(store, "cvae.pt", SETTINGS)
    drive.rename(tmp_path / "away")
    drive.mkdir()
    stage.save_progress({"state": CONTENT["state"]}, 1, torch.device("cpu"))
    assert "not mounted" in capsys.readouterr().out
    for use in (lambda: stage.save(**CONTENT), lambda: store.load("cvae.pt"), lambda: store.save_figure("a.png", b"")):
        with pytest.raises(WorkspaceError, match="Drive is not mounted"):
            use()
    assert not [*drive.iterdir()]
    drive.rmdir()
    (tmp_path / "away").rename(drive)
    assert torch.equal(stage.save(**CONTENT).state["w"], CONTENT["state"]["w"])
