"""Drives that hiccup: nothing good is called damaged, nothing that refuses for a moment stops a save, nothing bad loads."""

import copy
import errno
import hashlib
import io
import math
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from amnesia import Stage, Workspace
from amnesia.storage import disk as disk_module
from amnesia.storage import workspace as workspace_module
from amnesia.storage.disk import Unreadable, WorkspaceError, is_there, write_atomic
from amnesia.storage.files import Saved, remedy, save

REFUSALS = {name: OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
            for name in ("EIO", "ENOTCONN", "ESTALE", "ETIMEDOUT", "EACCES", "EMFILE")} | {"memory": MemoryError()}
UMASK = os.umask(0)
os.umask(UMASK)
every_refusal = pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS)
CPU, PARTS = torch.device("cpu"), {"state": {"w": torch.ones(1)}}
CONTENT = {"settings": {"steps": 3}, "lineage": {}, "state": {"w": torch.arange(5.0)}, "config": {}, "metrics": {}}


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(disk_module, "WAITS", (0, 0, 0))


@pytest.fixture
def path(tmp_path):
    """A good file."""
    save(tmp_path / "cvae.pt", CONTENT)
    return tmp_path / "cvae.pt"


@pytest.fixture
def refuse(monkeypatch):
    """refuse(owner, name, error, times): the function raises this error for the first `times` calls; returns their list."""
    def patch(owner, name, error, times=math.inf):
        calls, function = [], getattr(owner, name)

        def refusing(*arguments, **options):
            calls.append(arguments)
            if len(calls) <= times:
                raise error
            return function(*arguments, **options)
        monkeypatch.setattr(owner, name, refusing)
        return calls
    return patch


def test_equal_contents_are_equal_bytes(path):
    """Also where a string comes from a file, as the names of a resumed run's terms do, and not from the code."""
    chosen = {**CONTENT, "settings": {"forget": [0], "device": "cpu"}}
    other = "".join(["for", "get"])
    assert other is not "forget"  # noqa: F632
    files = []
    for name in ("forget", other):
        save(path, {**chosen, "metrics": {"terms": {name: torch.zeros(2)}, "names": (name, "kl")}})
        files.append(path.read_bytes())
    assert files[0] == files[1] and Saved(path).metrics["names"] == ("forget", "kl")


def litter(folder):
    return [path.name for path in folder.iterdir() if path.suffix == ".tmp"]


@every_refusal
def test_a_read_that_is_refused_for_a_moment_is_tried_again(path, refuse, error):
    calls = refuse(Path, "read_bytes", error, times=3)
    assert torch.equal(Saved(path).state["w"], torch.arange(5.0)) and len(calls) == 4


@every_refusal
def test_a_file_that_cannot_be_read_is_not_called_damaged(path, refuse, error):
    refuse(Path, "read_bytes", error)
    with pytest.raises(Unreadable, match=r"cvae\.pt could not be read \(.+\).*nothing is wrong.*keep it.*again") as caught:
        Saved(path)
    assert "elete" not in str(caught.value) and "damaged" not in str(caught.value) and path.exists()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # as it comes from another process


def test_torch_out_of_memory_is_not_called_damage(path, refuse):
    refuse(torch, "load", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    with pytest.raises(Unreadable, match="allocate"):
        Saved(path)


@every_refusal
def test_an_unfinished_run_that_cannot_be_read_is_kept(tmp_path, refuse, error):
    stage = Stage(Workspace(tmp_path), "cvae.pt", {"steps": 3})
    stage.save_progress(PARTS, 7, CPU)
    refuse(Path, "read_bytes", error)
    with pytest.raises(Unreadable, match=r"cvae\.unfinished\.pt"):
        stage.resume(PARTS, CPU)
    assert stage.unfinished.exists()


@pytest.mark.parametrize("name", ["EIO", "ENOTCONN", "ESTALE", "EACCES"])
def test_a_drive_that_does_not_say_whether_a_file_is_there(path, refuse, name):
    assert is_there(path) and not is_there(path / "below") and not is_there(path.with_name("other.pt"))
    refuse(Path, "stat", REFUSALS[name])
    with pytest.raises(Unreadable):
        is_there(path)


def test_a_file_that_vanished_names_the_remedy(tmp_path):
    with pytest.raises(WorkspaceError, match=r"cvae\.pt is not there any more\. Run 01_train_cvae\.ipynb"):
        Saved(tmp_path / "cvae.pt")


@every_refusal
@pytest.mark.parametrize(("owner", "name"), [(os, "replace"), (disk_module, "open"), (Path, "read_bytes")])
def test_a_write_that_is_refused_for_a_moment_is_tried_again(tmp_path, refuse, monkeypatch, owner, name, error):
    monkeypatch.setattr(disk_module, "open", open, raising=False)
    refuse(owner, name, error, times=3)
    write_atomic(tmp_path / "a.png", b"picture")
    assert (tmp_path / "a.png").read_bytes() == b"picture" and not litter(tmp_path)


@every_refusal
def test_a_write_that_is_refused_for_good_leaves_what_was_there(path, refuse, error):
    before = path.read_bytes()
    refuse(os, "replace", error)
    with pytest.raises(WorkspaceError, match=r"cvae\.pt could not be written \(.+\).*untouched.*memory.*this cell again"):
        save(path, {**CONTENT, "settings": {"steps": 4}})
    assert path.read_bytes() == before and not litter(path.parent)


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EPERM", "ENOSYS", "EACCES"])
def test_refused_fsync_and_chmod_do_not_stop_a_save(path, refuse, name):
    error = OSError(getattr(errno, name), "refused")
    calls = refuse(os, "fsync", error)
    for function in ("chmod", "fchmod", "utime"):
        refuse(os, function, error)
    save(path, {**CONTENT, "settings": {"steps": 4}})
    assert Saved(path).settings == {"steps": 4} and calls


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_an_fsync_that_lost_the_bytes_does(path, refuse, name):
    refuse(os, "fsync", OSError(getattr(errno, name), "lost"))
    with pytest.raises(WorkspaceError, match="could not be written"):
        save(path, CONTENT)


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_full_disk_is_called_that_at_once(path, refuse, name):
    calls = refuse(os, "fsync", OSError(getattr(errno, name), "full"))
    with pytest.raises(WorkspaceError, match=r"untouched.*disk is full: free some space, then run this cell again"):
        save(path, CONTENT)
    assert len(calls) == 1


def test_too_little_memory_to_pack_is_no_fault_of_the_content(path, refuse):
    refuse(torch, "save", MemoryError())
    with pytest.raises(WorkspaceError, match=r"could not be written \(MemoryError\).*still in memory"):
        save(path, CONTENT)


def test_others_may_read_what_is_written(path):
    assert path.stat().st_mode & 0o777 == 0o666 & ~UMASK


def test_bytes_that_read_otherwise_replace_nothing(path, monkeypatch):
    before, read = path.read_bytes(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self)[:-1])
    with pytest.raises(WorkspaceError, match="what was written reads otherwise"):
        save(path, {**CONTENT, "settings": {"steps": 4}})
    monkeypatch.undo()
    assert path.read_bytes() == before and not litter(path.parent)


@pytest.mark.parametrize(("name", "content"), [
    ("cvae.pt", {**CONTENT, "settings": {"steps": np.int64(3)}}), ("cvae.pt", {**CONTENT, "metrics": {"P": np.float64(0)}}),
    ("cvae.pt", {**CONTENT, "config": {"path": Path("here")}}), ("cvae.pt", {"settings": {}}),
    ("cvae.pt", {**CONTENT, "state": {"w": torch.tensor([1, math.nan])}}),
    ("evaluation-0.json", {"settings": {"steps": np.int64(3)}, "lineage": {}}),
    ("evaluation-0.json", {"settings": {}, "lineage": {}, "original": torch.ones(1)})])
def test_what_nothing_could_read_again_replaces_nothing(tmp_path, name, content):
    (tmp_path / name).write_bytes(b"good")
    with pytest.raises(WorkspaceError, match=rf"{name} was not written.*untouched"):
        save(tmp_path / name, content)
    assert (tmp_path / name).read_bytes() == b"good" and os.listdir(tmp_path) == [name]


def test_what_cut_off_writes_left_is_swept_after_a_day(tmp_path):
    old, young, other = (tmp_path / name for name in (".cvae.pt.12.tmp", ".cvae.pt.34.tmp", "mine.tmp"))
    for left in (old, young, other):
        left.write_bytes(b"half")
    for left in (old, other):
        os.utime(left, (time.time() - 90_000,) * 2)
    write_atomic(tmp_path / "a.png", b"picture")
    assert not old.exists() and young.exists() and other.exists()


@every_refusal
def test_a_failed_save_of_progress_is_a_warning(tmp_path, refuse, capsys, error):
    stage = Stage(Workspace(tmp_path), "cvae.pt", {"steps": 3})
    stage.save_progress(PARTS, 7, CPU)
    calls = refuse(os, "replace", error, times=4)
    stage.save_progress(PARTS, 8, CPU)
    assert "goes on" in capsys.readouterr().out and stage.resume(PARTS, CPU) == 7 and len(calls) == 4
    stage.save_progress(PARTS, 9, CPU)
    assert stage.resume(PARTS, CPU) == 9


def test_a_finished_save_stands_though_its_progress_cannot_be_deleted(tmp_path, refuse):
    stage = Stage(Workspace(tmp_path), "cvae.pt", {"steps": 3})
    stage.save_progress(PARTS, 7, CPU)
    refuse(Path, "unlink", REFUSALS["EACCES"])
    stage.save(state={"w": torch.ones(1)}, config={}, metrics={})
    assert Stage(Workspace(tmp_path), "cvae.pt", {"steps": 3}).done()


def written(path, content):
    """A file that was made past every check."""
    file = io.BytesIO()
    torch.save({"kind": "cvae", "name": "cvae.pt", "format": 1, "versions": {}, **CONTENT, **content}, file)
    path.write_bytes(file.getvalue())
    return path


def test_no_entry_of_a_file_passes_for_what_was_computed(path):
    saved = Saved(written(path, {"digest": "0" * 64, "path": "elsewhere", "build": None, "content": {}}))
    assert saved.digest == hashlib.sha256(path.read_bytes()).hexdigest() and saved.path == path
    assert callable(saved.build) and saved.content["settings"] == saved.settings
    with pytest.raises(AttributeError, match=r"cvae\.pt holds no 'original'"):
        _ = saved.original
    assert copy.deepcopy(saved).settings == pickle.loads(pickle.dumps(saved)).settings == saved.settings


@pytest.mark.parametrize(("content", "says"), [
    ({"kind": "fim"}, "calls itself a fim"), ({"state": {"w": torch.tensor([math.nan])}}, "finite real numbers"),
    ({"state": {"w": torch.tensor([1, -math.inf])}}, "finite real numbers"), ({"state": None}, "no dict of tensors"),
    ({"state": [torch.ones(1)]}, "no dict of tensors"), ({"state": {"w": [1.0]}}, "no dict of tensors"),
    ({"state": {"w": torch.ones(3, dtype=torch.int8)}}, "real numbers"),
    ({"state": {"w": torch.ones(3, dtype=torch.complex64)}}, "real numbers"),
    ({"lineage": ["cvae.pt"]}, "lineage is no dict"), ({"lineage": {1: "a"}}, "lineage is no dict"),
    ({"config": None}, "config is no dict"), ({"metrics": [1]}, "metrics is no dict"),
    ({"settings": None}, "settings is no dict"), ({"settings": [3]}, "settings is no dict"),
    ({"settings": {"steps": torch.ones(2)}}, "settings or its lineage")])
def test_a_file_that_lies_is_refused_by_name(path, content, says):
    with pytest.raises(WorkspaceError, match=rf"cvae\.pt is damaged.*({says}).*Move it away\. Run 01_train_cvae"):
        Saved(written(path, content))


class Arguments:
    """As the Namespace that the paper's code pickles with its weights."""


@pytest.mark.parametrize("content", [{"model": {"w": torch.ones(3)}, "args": Arguments()}, {"model": {"w": torch.ones(3)}},
                                     torch.ones(3), {"kind": ["cvae"], "name": 3, "format": torch.ones(2)}])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_another_project_is_kept_and_not_called_damaged(path, content, zipped):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    before = path.read_bytes()
    with pytest.raises(WorkspaceError, match=r"cvae\.pt is not a file of this project .*Move it away\. Run 01") as caught:
        Saved(path)
    assert "damaged" not in str(caught.value) and "elete" not in str(caught.value) and path.read_bytes() == before


@pytest.mark.parametrize(("content", "says"), [(b"[" * 50_000, "damaged"), (b"{}", "not a file of this project"),
                                               (b"[1]", "not a file of this project"), (b"", "damaged")])
def test_an_evaluation_of_another_kind(tmp_path, content, says):
    (tmp_path / "evaluation-0.json").write_bytes(content)
    with pytest.raises(WorkspaceError, match=rf"evaluation-0\.json is {says}.*Move it away\. Run 05_evaluate"):
        Saved(tmp_path / "evaluation-0.json")


def test_what_says_nothing_of_the_file_is_passed_on(path, refuse):
    """As a part of torch that is imported late, from a folder that this user may not enter."""
    refuse(torch, "load", ModuleNotFoundError("No module named 'torch.utils.serialization'"))
    with pytest.raises(ModuleNotFoundError):
        Saved(path)
    with pytest.raises(ModuleNotFoundError):
        save(path, CONTENT)


@pytest.mark.slow
def test_nothing_is_imported_late(tmp_path):
    """Once the helper is imported, saving, loading and refusing need no module that is not there yet."""
    code = """
import sys
from pathlib import Path
import torch
from amnesia.storage.disk import WorkspaceError
from amnesia.storage.files import Saved, save
class Shut:
    def find_spec(self, name, path=None, target=None):
        raise ImportError(f"{name} is out of reach")
path = Path(sys.argv[1])
sys.meta_path.insert(0, Shut())
save(path, {"settings": {"steps": 3}, "lineage": {}, "state": {"w": torch.ones(3)}, "config": {}, "metrics": {}})
assert Saved(path).state["w"].sum() == 3
for bad in path.read_bytes()[:-9], b"PK", b"{}", b"":
    path.write_bytes(bad)
    try:
        Saved(path)
    except WorkspaceError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "cvae.pt"], capture_output=True, text=True, check=False,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert result.returncode == 0 and result.stdout.count("Move it away") == 4, result.stderr


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_refused(tmp_path, make):
    make(tmp_path / "cvae.pt")
    with pytest.raises(Unreadable, match=r"cvae\.pt could not be read \(it is no regular file"):
        Saved(tmp_path / "cvae.pt")


def test_a_link_that_leads_nowhere_does_not_mean_the_released_file(tmp_path):
    store = Workspace(tmp_path)
    (store.checkpoints / "cvae.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(Unreadable, match=r"cvae\.pt could not be read \(it is a link that leads nowhere"):
        store.load("cvae.pt")
    with pytest.raises(Unreadable, match="leads nowhere"):
        Stage(store, "cvae.pt", {"steps": 3})


def test_advice_fits_the_file():
    assert remedy("fim-cvae.pt") == "Run 02_compute_fim.ipynb to make it."
    assert remedy("fim-amnesiac-0.pt") == 'Run 02_compute_fim.ipynb with model="amnesiac-0" to make it.'
    assert "spelt right" in remedy("cvea.pt") and "git" not in remedy("cvea.pt")
    assert "starts anew" in remedy("cvae.unfinished.pt") and "trained where" in remedy("classifier-1.pt")


def test_every_released_file_loads():
    released = [*(workspace_module.REPOSITORY / "checkpoints" / "released").rglob("*.pt"),
                *(workspace_module.REPOSITORY / "checkpoints" / "released").rglob("evaluation-*.json")]
    assert len(released) >= 16 and all(Saved(path).settings for path in released)
