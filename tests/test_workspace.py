"""Files: whole or not at all, checked before use, and never mixed up."""

import json
import os
import pickle
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amnesia import CVAE, Classifier, Stage, Workspace, pick_device
from amnesia.storage import disk as disk_module
from amnesia.storage import files as files_module
from amnesia.storage import workspace as workspace_module
from amnesia.storage.disk import WorkspaceError
from amnesia.storage.parameters import check_parameters

SETTINGS = {"steps": 3, "seed": 0}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A workspace beside an empty repository, so that no released file stands in for a missing one."""
    monkeypatch.setattr(workspace_module, "REPOSITORY", tmp_path / "repository")
    return Workspace(tmp_path / "workspace")


def save(store, name, made_from=(), settings=SETTINGS, **content):
    stage = Stage(store, name, settings, made_from, overwrite=True)
    content = content or {"state": {"w": torch.arange(1000.0)}, "config": {}, "metrics": {"terms": [1.0, 2.0]}}
    stage.save(**content)
    return stage.load()


def test_what_is_saved_is_plain_and_loads_again(store, cvae):
    saved = save(store, "cvae.pt", state=cvae.state_dict(), config=cvae.config, metrics={})
    content = torch.load(saved.path, weights_only=True)
    assert {"kind", "state", "config", "lineage", "metrics", "versions"} <= content.keys() and content["kind"] == "cvae"
    rebuilt = store.load("cvae.pt").build(CVAE, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(rebuilt.parameters(), cvae.parameters(), strict=True))
    with pytest.raises(WorkspaceError, match="does not hold a Classifier"):
        store.load("cvae.pt").build(Classifier, "cpu")


def test_json_too(store):
    result = save(store, "evaluation-0.json", original={"entropy": 0.1})
    assert json.loads(result.path.read_text())["original"] == result.original == {"entropy": 0.1}


@pytest.mark.parametrize(("name", "notebook"), [("cvae.pt", "01_train_cvae"), ("fim-cvae.pt", "02_compute_fim"),
                                                ("amnesiac-0.pt", "03_forget"), ("samples-0.pt", "04_sample")])
def test_a_missing_file_names_the_notebook_to_run(store, name, notebook):
    with pytest.raises(WorkspaceError, match=f"{name} is neither in .*Run {notebook}.ipynb"):
        store.load(name)


def test_the_released_file_stands_in_and_is_announced(store, capsys):
    saved = save(store, "cvae.pt")
    released = workspace_module.REPOSITORY / "checkpoints" / "released"
    released.mkdir(parents=True)
    saved.path.rename(released / "cvae.pt")
    assert store.load("cvae.pt").path.parent == released
    assert "Using the released" in capsys.readouterr().out


def test_a_file_made_from_another_is_refused(store):
    old = save(store, "cvae.pt")
    save(store, "fim-cvae.pt", [old])
    new = save(store, "cvae.pt", settings={**SETTINGS, "seed": 1})
    assert store.load("fim-cvae.pt", made_from=[old])
    with pytest.raises(WorkspaceError, match=r"fim-cvae.pt was not made from this .*cvae.pt.*Run 02_compute_fim"):
        store.load("fim-cvae.pt", made_from=[new])


def test_a_stage_is_done_only_with_the_same_settings_and_inputs(store, capsys):
    source = save(store, "cvae.pt")
    save(store, "fim-cvae.pt", [source])
    assert Stage(store, "fim-cvae.pt", SETTINGS, [source]).done()
    assert not Stage(store, "fim-cvae.pt", SETTINGS, [source], overwrite=True).done()
    assert not Stage(store, "fim-cvae.pt", {**SETTINGS, "steps": 4}, [source]).done()
    assert "steps=4 (was 3)" in capsys.readouterr().out
    other = save(store, "cvae.pt", settings={**SETTINGS, "seed": 1})
    assert not Stage(store, "fim-cvae.pt", SETTINGS, [other]).done()


def test_a_finished_file_of_other_settings_is_kept_and_named(store, capsys):
    old = save(store, "cvae.pt")
    before, new = old.path.read_bytes(), save(store, "cvae.pt", settings={**SETTINGS, "seed": 1})
    kept = store.checkpoints / f"cvae.{old.digest[:8]}.pt"
    assert kept.read_bytes() == before != new.path.read_bytes() and f"kept as {kept}" in capsys.readouterr().out
    save(store, "cvae.pt", settings={**SETTINGS, "seed": 1})                    # the same again: nothing to keep
    assert len(list(store.checkpoints.iterdir())) == 2


def test_what_was_changed_since_the_stage_was_set_up_is_refused_by_name(store):
    parameters = dict(SETTINGS)
    stage = Stage(store, "cvae.pt", lambda: dict(parameters))
    parameters["steps"] = 4
    for use in (stage.done, stage.load):
        with pytest.raises(WorkspaceError, match=r"steps=4 \(was 3\): changed since cvae\.pt was set up.*Run the cell"):
            use()
    parameters["steps"] = 3
    assert not stage.done()


def test_an_edited_model_is_another_run_s_and_no_other_notebook_builds_it(store, cvae, capsys):
    """Edited after the helper's own was trained: it is trained anew, the old file is kept, and only 01 can go on with it."""
    stage = Stage(store, "cvae.pt", {"seed": 0})
    stage.save(state=cvae.state_dict(), config=cvae.config, metrics={})
    edited = {"edited": [1.5, 2.25]}
    assert stage.done() and not stage.done(edited) and stage.done()
    assert not stage.done(edited)
    stage.save(state=cvae.state_dict(), config=cvae.config, metrics={})
    assert "kept as" in capsys.readouterr().out and len(list(store.checkpoints.glob("cvae.*.pt"))) == 1
    assert stage.done(edited) and stage.load().settings == {"seed": 0, **edited} and not stage.done()
    with pytest.raises(WorkspaceError, match=r"edited in 01_train_cvae.*amnesia/models\.py"):
        store.load("cvae.pt").build(CVAE, "cpu")


def test_another_runs_file_is_not_loaded_as_ones_own(store):
    """As when another tab has forgotten the same digit with other settings meanwhile."""
    stage = Stage(store, "cvae.pt", SETTINGS)
    with pytest.raises(WorkspaceError, match="not made yet"):
        stage.load()
    save(store, "cvae.pt", settings={**SETTINGS, "seed": 1})
    with pytest.raises(WorkspaceError, match=r"another run's: seed=0 \(was 1\)"):
        stage.load()
    assert not stage.done()


def test_a_failed_last_save_is_made_up_for_when_the_cell_runs_again(store, monkeypatch):
    stage = Stage(store, "cvae.pt", SETTINGS)
    with monkeypatch.context() as broken, pytest.raises(WorkspaceError):
        broken.setattr(files_module, "write_atomic", lambda path, content: (_ for _ in ()).throw(WorkspaceError("gone")))
        stage.save(state={"w": torch.ones(3)}, config={}, metrics={})
    assert stage.done() and torch.equal(stage.load().state["w"], torch.ones(3))


def test_other_data_sets_have_a_folder_of_their_own(tmp_path):
    store = Workspace(tmp_path, dataset="FashionMNIST")
    assert store.checkpoints == tmp_path / "checkpoints" / "FashionMNIST" and store.figures.parent == tmp_path / "figures"
    assert store.released.name == "FashionMNIST" and store.data == tmp_path / "data"


def test_another_dataset_than_the_inputs_is_refused(store):
    source = save(store, "cvae.pt", settings={**SETTINGS, "dataset": "MNIST"})
    with pytest.raises(ValueError, match=r"dataset='Omniglot', but cvae\.pt was made with dataset='MNIST'"):
        Stage(store, "fim-cvae.pt", {**SETTINGS, "dataset": "Omniglot"}, [source])


def test_truncation_and_flipped_bytes_never_load_as_something_else(store):
    saved = save(store, "cvae.pt")
    good = saved.path.read_bytes()
    for length in range(0, len(good), 97):
        saved.path.write_bytes(good[:length])
        with pytest.raises(WorkspaceError, match=r"cvae\.pt is damaged.*01_train_cvae"):
            store.load("cvae.pt")
    for position in range(0, len(good), 13):
        flipped = bytearray(good)
        flipped[position] ^= 0x10
        saved.path.write_bytes(flipped)
        try:
            loaded = store.load("cvae.pt")
        except WorkspaceError:
            continue
        assert torch.equal(loaded.state["w"], torch.arange(1000.0)) and loaded.settings == SETTINGS  # in zip padding


def test_wrong_kind_wrong_name_and_future_format_are_refused(store, monkeypatch):
    fim = save(store, "fim-cvae.pt")
    (store.checkpoints / "cvae.pt").write_bytes(fim.path.read_bytes())
    with pytest.raises(WorkspaceError, match=r"cvae\.pt holds what was saved as fim-cvae\.pt"):
        store.load("cvae.pt")
    torch.save({"model": {}}, store.checkpoints / "cvae.pt")
    with pytest.raises(WorkspaceError, match="not a file of this project"):
        store.load("cvae.pt")
    monkeypatch.setattr(files_module, "FORMAT", 0)
    with pytest.raises(WorkspaceError, match="format 1, and this version reads format 0"):
        store.load("fim-cvae.pt")


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"kind": "cvae", "state": bad}])
def test_a_malicious_pickle_runs_nothing(store, tmp_path, monkeypatch, wrap):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(Malicious()), store.checkpoints / "cvae.pt")
    with pytest.raises(WorkspaceError, match="not a file of this project"):
        store.load("cvae.pt")
    (store.checkpoints / "cvae.pt").write_bytes(pickle.dumps(wrap(Malicious())))
    with pytest.raises(WorkspaceError, match="not a file of this project"):
        store.load("cvae.pt")
    assert not Path("pwned").exists()
    torch.load(save_evil(tmp_path), weights_only=False)
    assert Path("pwned").exists()  # the trap does work when someone loads it carelessly


def save_evil(folder):
    torch.save(Malicious(), folder / "evil.pt")
    return folder / "evil.pt"


def test_a_full_disk_leaves_the_old_file_whole(store):
    """RLIMIT_FSIZE makes every write past 100 kB fail, like a disk that is full."""
    saved = save(store, "cvae.pt")
    before = saved.path.read_bytes()
    resource = pytest.importorskip("resource")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match=r"cvae\.pt could not be written.*untouched"):
            save(store, "cvae.pt", state={"w": torch.zeros(10**6)}, config={}, metrics={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert saved.path.read_bytes() == before
    assert [path.name for path in store.checkpoints.iterdir()] == ["cvae.pt"]  # no litter


def test_a_folder_that_vanishes_is_named_and_comes_back(store):
    """As a Drive that is unmounted under a running notebook."""
    saved = save(store, "cvae.pt")
    away = store.checkpoints.rename(store.checkpoints.with_name("away"))
    with pytest.raises(WorkspaceError, match=r"cvae\.pt could not be written.*What was there before is untouched"):
        save(store, "cvae.pt")
    away.rename(store.checkpoints)
    assert store.load("cvae.pt").digest == saved.digest


def test_the_same_content_gives_the_same_bytes_and_an_edited_figure_is_refused(store):
    assert save(store, "cvae.pt").digest == save(store, "cvae.pt").digest
    path = save(store, "evaluation-0.json", original={"entropy": 0.1}).path
    path.write_text(path.read_text().replace("0.1", "0.9"))
    with pytest.raises(WorkspaceError, match="wrong checksum"):
        store.load("evaluation-0.json")


def test_an_unwritable_workspace_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"workspace='.*file/inside' can't be written"):
        Workspace(str(tmp_path / "file" / "inside"))


@given(st.text(max_size=20).map(lambda text: f"../{text}") | st.sampled_from(["/etc/passwd", "a/b.pt", ".hidden", "..", ""]))
def test_names_stay_inside_the_workspace(tmp_path_factory, name):
    with pytest.raises(ValueError, match="plain file name"):
        Workspace(tmp_path_factory.getbasetemp()).load(name)


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Where Drive is mounted, by an emulation; nothing is there yet, and the repository lies beside it."""
    drive, ismount = tmp_path / "content" / "drive", os.path.ismount
    monkeypatch.delenv("AMNESIA_WORKSPACE", raising=False)
    monkeypatch.setattr(workspace_module, "REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr(disk_module, "WAITS", (0,))
    for module in (workspace_module, disk_module):
        monkeypatch.setattr(module, "DRIVE", drive)
    monkeypatch.setattr(os.path, "ismount", lambda path: (drive / "MyDrive").exists() if path == drive else ismount(path))
    return drive


def test_the_workspace_look_up(drive, tmp_path, monkeypatch):
    assert Workspace().folder == tmp_path / "repository"
    (drive / "MyDrive").mkdir(parents=True)
    assert Workspace().folder == drive / "MyDrive" / "selective-amnesia"
    assert Workspace().save_seconds > Workspace(use_drive=False).save_seconds  # Drive keeps old versions
    assert Workspace(use_drive=False).folder == tmp_path / "repository"
    shared = drive / "Shareddrives" / "ours" / "project"                       # the project itself lies on Drive
    monkeypatch.setattr(workspace_module, "REPOSITORY", shared)
    assert Workspace().folder == shared
    monkeypatch.setattr(workspace_module, "REPOSITORY", tmp_path / "input" / "project")
    monkeypatch.setattr(workspace_module, "KAGGLE", tmp_path)
    assert Workspace().folder == tmp_path / "working"
    monkeypatch.setenv("AMNESIA_WORKSPACE", str(tmp_path / "mine"))
    assert Workspace().folder == tmp_path / "mine"
    assert Workspace(tmp_path / "asked").folder == tmp_path / "asked"


@pytest.mark.parametrize("lies", ["the project beside Drive", "the project on Drive", "asked for", "by the environment"])
def test_nothing_is_made_below_a_mount_point_that_is_not_mounted(drive, monkeypatch, lies):
    """Unmounted in mid-session, which leaves an empty folder."""
    drive.mkdir(parents=True)
    if lies == "the project on Drive":
        monkeypatch.setattr(workspace_module, "REPOSITORY", drive / "MyDrive" / "selective-amnesia")
    if lies == "by the environment":
        monkeypatch.setenv("AMNESIA_WORKSPACE", str(drive / "MyDrive" / "mine"))
    with pytest.raises(WorkspaceError, match=r"Drive is not mounted.*run the cell “Setup” again"):
        Workspace(drive / "MyDrive" / "mine" if lies == "asked for" else "auto")
    assert not list(drive.iterdir())


def test_a_drive_that_is_lost_under_way_is_named_and_what_was_trained_is_saved_once_it_is_back(drive, tmp_path, capsys):
    (drive / "MyDrive").mkdir(parents=True)
    store = Workspace()
    stage = Stage(store, "cvae.pt", SETTINGS)
    drive.rename(tmp_path / "away")
    drive.mkdir()
    stage.save_progress({"state": {"w": torch.ones(3)}}, 1, torch.device("cpu"))
    assert "not mounted" in capsys.readouterr().out
    for use in (lambda: stage.save(state={"w": torch.ones(3)}, config={}, metrics={}), lambda: store.load("cvae.pt"),
                lambda: store.save_figure("a.png", b"picture")):
        with pytest.raises(WorkspaceError, match=r"Drive is not mounted.*run the cell “Setup” again"):
            use()
    assert not list(drive.iterdir())
    drive.rmdir()
    (tmp_path / "away").rename(drive)
    assert stage.done() and torch.equal(stage.load().state["w"], torch.ones(3))


@pytest.mark.parametrize(("name", "bad"), [
    ("n_samples", 0), ("steps", -1), ("steps", 1.5), ("batch_size", True), ("seed", -1), ("seed", "0"),
    ("learning_rate", 0), ("learning_rate", float("nan")), ("lam", -1), ("gamma", float("inf")), ("latent_dim", None),
    ("steps", 10**12)])
def test_bad_parameters_are_named(name, bad):
    with pytest.raises(ValueError, match=f"{name}=.*expected a"):
        check_parameters(**{name: bad})


def test_a_number_that_yaml_takes_for_text_is_explained():
    with pytest.raises(ValueError, match=r"learning_rate='1e-4'.*This is text: YAML.*1\.0e-4"):
        check_parameters(learning_rate="1e-4")


@pytest.mark.parametrize(("name", "value"), [("steps", np.int64(3)), ("lam", np.float64(1)), ("seed", torch.tensor(0))])
def test_numbers_of_other_packages_are_refused_with_advice(name, value):
    with pytest.raises(ValueError, match=rf"{name}=.*take {name}\.item\(\)"):
        check_parameters(**{name: value})


def test_lam_and_gamma_may_be_zero():
    check_parameters(lam=0, gamma=0.0, steps=1, seed=0, learning_rate=1e-9)


def test_devices():
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="device='abacus'"):
        pick_device("abacus")


tensors = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=30).map(torch.tensor)
leaves = st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats(allow_nan=False) | st.text(max_size=9)
plain = st.recursive(leaves,
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                     max_leaves=8)


settings = st.dictionaries(st.text(max_size=5), plain)


@given(state=st.dictionaries(st.text(min_size=1, max_size=9), tensors, max_size=4), config=settings, metrics=settings)
def test_any_content_survives_the_round_trip(tmp_path_factory, state, config, metrics):
    saved = save(Workspace(tmp_path_factory.mktemp("any")), "cvae.pt", state=state, config=config, metrics=metrics)
    assert saved.config == config and saved.metrics == metrics and saved.state.keys() == state.keys()
    assert all(torch.equal(saved.state[key], state[key]) for key in state)
    assert zipfile.ZipFile(saved.path).testzip() is None
