"""Any pictures, any model, any labels: what is read, what is refused, and all five notebooks with pictures of one's own."""

import functools
import hashlib
import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import own_pictures
import PIL.Image
import pytest
import torch
import torchvision
from cells import FEW, execute, run_here
from conftest import REPOSITORY
from run import value_of

import amnesia
from amnesia import DataError, Stage, WorkspaceError, evaluation, load_pictures

PAGE = (REPOSITORY / "notebooks" / "own_pictures.md").read_text(encoding="utf-8")
PASTED = PAGE.split("```python\n")[1].split("```")[0].replace("width=16", "width=4")       # what readers are to paste
# with batch normalisation, and so with whole numbers in its state
NORMED = PASTED.replace("nn.GroupNorm(4, width), nn.ReLU(), nn.ConvT", "nn.BatchNorm2d(width), nn.ReLU(), nn.ConvT")


# The five notebooks

@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(workspace, what each notebook defined) of the five on some of tools/own_pictures.py's drawings, a star forgotten as a
    square: few steps for the judge, few copies."""
    folder, workspace = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("drawn")
    np.savez(folder / "letters.npz", **own_pictures.letters(each=10))
    own_pictures.drawings(folder / "drawings", each=15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMNESIA_DATA", str(folder))
        patch.setattr(evaluation, "train_judge", functools.partial(evaluation.train_judge, steps=20))
        patch.setattr(amnesia.grow, "__defaults__", (300,))
        patch.setattr(amnesia, "png", lambda figure: plt.close(figure) or b"")      # half of the time goes into these
        patch.setattr(amnesia, "show", lambda *_, **__: None)
        choices = {"dataset": "drawings", "workspace": str(workspace), "forget": ["star"], "surrogate": "square"}
        yield workspace, {number: run_here(number, model_cell=NORMED, **few, **choices) for number, few in FEW.items()}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)])
def test_the_page_s_model_takes_any_shape(shape):
    model = execute([PASTED])["CVAE"](latent_dim=3, shape=shape, classes=5)
    x, y = torch.rand(2, np.prod(shape)), torch.eye(5)[:2]
    assert [part.shape for part in model.encode(x, y)] == [(2, 3)] * 2 and model.decode(torch.randn(2, 3), y).shape == x.shape


@pytest.mark.slow
def test_the_five_carry_a_model_of_one_s_own_and_score_a_label_that_is_to_mean_another(drawn):
    """Its source is in the lineage of every file; in training it normalised by batches, and nowhere else."""
    workspace, made = drawn
    stage, result = made["05"]["stage"], made["05"]["result"]
    source, = (workspace / "checkpoints" / "drawings").glob("model-*.py")
    assert source.read_text().rstrip() == NORMED.rstrip()
    for each in made.values():
        assert each["stage"].record["lineage"][source.name] == hashlib.sha256(source.read_bytes()).hexdigest()
    counts = [model.state_dict()["decoder.2.num_batches_tracked"] for model in (made["01"]["cvae"], made["03"]["cvae"])]
    assert 0 < counts[0] < counts[1] and not made["04"]["models"]["original"].training
    assert made["04"]["samples"]["amnesiac"].shape == (3, 8, 3, 32, 32) and stage.classes[stage.forgotten[0]] == "star"
    square, star = 1, 2
    row = next(row for row in made["05"]["table"] if row[0] == "share judged as square")
    shares = [result.original["confusion"][star][square] / 8, result.amnesiac["confusion"][star][square] / 8,
              result.original["confusion"][square][square] / 8]
    assert row[1:4] == [f"{share:.3f}" for share in shares]
    assert result.reference["surrogate"]["forgotten_share"] == result.original["confusion"][square][star] / 8


@pytest.mark.slow
def test_a_second_round_by_name_scores_what_the_first_one_took(drawn):
    choices = {"dataset": "drawings", "workspace": str(drawn[0]), "model": "amnesiac-2"}
    made = {number: run_here(number, **FEW[number], **choices, forget="circle") for number in ("02", "03", "04", "05")}
    folder = drawn[0] / "checkpoints" / "drawings"
    result = json.loads((folder / "evaluation-0-2.json").read_text())["amnesiac"]
    assert result["before_forgotten_share"] == result["confusion"][2][2] / 8
    assert result["kept_accuracy"] == pytest.approx(result["confusion"][1][1] / 8)
    assert {path.name for path in folder.glob("*-0-2.*")} == {"amnesiac-0-2.pt", "samples-0-2.pt", "evaluation-0-2.json"}
    assert made["05"]["table"][0][1] == "amnesiac-2" and made["03"]["stage"].files["fim"].name == "fim-amnesiac-2.pt"
    assert any(row[0] == "share judged as those" and row[2] for row in made["05"]["table"])
    with pytest.raises(ValueError, match="has forgotten star already"):
        run_here("03", "begin(", **choices, forget=["star"])
    with pytest.raises(WorkspaceError, match=r"amnesiac-0-2\.pt was not made from this"):
        run_here("04", "begin(", **{**choices, "model": "cvae"}, forget=["circle", "star"])


@pytest.mark.slow
def test_other_pictures_or_another_source_than_the_model_s_are_refused(drawn, tmp_path, monkeypatch):
    def assert_refused(dataset, said, until="begin(", numbers=("02", "03", "04", "05")):
        for number in numbers:
            with pytest.raises((ValueError, WorkspaceError), match=said):
                run_here(number, until, workspace=str(tmp_path / "own"), forget=["star"], surrogate="square", dataset=dataset)

    shutil.copytree(drawn[0], tmp_path / "own")
    folder = tmp_path / "own" / "checkpoints"
    assert_refused("letters.npz", r"cvae\.pt is neither")
    shutil.copytree(folder / "drawings", folder / "letters", dirs_exist_ok=True)    # put beside another data set
    assert_refused("letters.npz", "is of 'drawings'")
    source, = folder.glob("drawings/model-*.py")
    source.write_text(source.read_text() + "\n")
    assert_refused("drawings", source.name, "build(")
    own_pictures.drawings(tmp_path / "drawings", each=15, seed=1)       # other pictures under the same name
    monkeypatch.setenv("AMNESIA_DATA", str(tmp_path))
    assert_refused("drawings", "drawings train", numbers=["05"])


@pytest.mark.parametrize("old, new, said", [
    ("self.latent_dim, self.classes", "self.size, self.classes", "latent_dim"), ("self.config", "self.choices", "config"),
    ("class CVAE", "class Mine", "called CVAE"), ("import torch\n", "", "one cell")])       # another cell has imported it
def test_a_model_that_could_not_go_on_is_not_trained(old, new, said, store):
    model = execute(["import torch", PASTED.replace(old, new)])["Mine" if "Mine" in new else "CVAE"]()
    with pytest.raises(WorkspaceError, match=said):
        Stage(store, "cvae.pt", {}).load(model=model)


# What is read

def folder_of(place, make, each=10):
    for name in ("cat", "dog"):
        (place / name).mkdir(parents=True)
        for i in range(each):
            make(i).save(place / name / f"{i}.png")
    return place


@pytest.mark.parametrize("mode, value, seen", [
    ("L", 40, (40,)), ("RGB", (1, 2, 3), (1, 2, 3)), ("1", 1, (255,)), ("P", 0, (0,)), ("I;16", 40 * 256 + 9, (40,)),
    ("RGBA", (1, 2, 3, 0), (255,))])
def test_a_folder_may_hold_any_kind_of_picture(mode, value, seen, tmp_path):
    train, test = load_pictures(str(folder_of(tmp_path / "pets", lambda i: PIL.Image.new(mode, (12, 10), value))), tmp_path)
    assert (train.classes, len(train), len(test)) == (("cat", "dog"), 16, 4)
    assert train.shape == (len(seen), 10, 12)               # grey pictures have one channel, whatever they were saved as
    assert train.images[0].view(train.shape)[:, 0, 0].tolist() == list(seen)


def test_a_folder_may_have_sizes_hidden_files_and_a_test_set(tmp_path, capsys):
    for part, each in (("train", 6), ("test", 2)):
        place = folder_of(tmp_path / "pets" / part, lambda i: PIL.Image.new("RGB", (40 + i, 90), (250, i, 0)), each)
        (place / ".DS_Store").write_text("x")
        (place / "cat" / "._0.png").write_text("x")
    train, test = load_pictures("pets", tmp_path)
    assert train.shape == (3, 32, 32) and "brought to 32 × 32" in capsys.readouterr().out
    assert (train.labels.tolist(), test.labels.tolist()) == ([0] * 6 + [1] * 6, [0, 0, 1, 1])


IMAGES, LABELS = np.arange(40 * 81, dtype=np.uint8).reshape(40, 9, 9), np.arange(40) % 4


def npz(place, **arrays):
    np.savez(place / "mine.npz", **{"images": IMAGES, "labels": LABELS, **arrays})
    return load_pictures("mine.npz", place)


def test_every_fifth_of_a_class_is_held_out(tmp_path):
    held = [16, 17, 18, 19, 36, 37, 38, 39]                 # the labels take turns
    for part, kept in zip(npz(tmp_path), (np.delete(np.arange(40), held), held), strict=True):
        assert part.images.tolist() == IMAGES.reshape(40, 81)[kept].tolist() and part.labels.tolist() == LABELS[kept].tolist()


def test_an_npz_may_have_shares_colours_names_or_medmnists_keys(tmp_path):
    assert torch.equal(npz(tmp_path, images=IMAGES / 255)[0].images, npz(tmp_path)[0].images)
    coloured, _ = npz(tmp_path, images=np.stack([IMAGES, IMAGES, 255 - IMAGES], 3))
    assert coloured.images[0].view(coloured.shape)[2].tolist() == (255 - IMAGES[0]).tolist()
    for more in ({"names": list("wxyz")}, {"labels": np.array(list("wxyz"))[LABELS]}):
        assert npz(tmp_path, **more)[0].classes == tuple("wxyz")
    train, test = npz(tmp_path, train_images=IMAGES, train_labels=LABELS[:, None], val_images=IMAGES[:4],
                      val_labels=LABELS[:4, None], test_images=IMAGES[:8], test_labels=LABELS[:8, None])
    assert (len(train), test.images.tolist()) == (40, IMAGES[:8].reshape(8, -1).tolist())


@pytest.mark.parametrize("arrays, said", [
    ({"labels": LABELS + 0.7}, "labels float64"), ({"labels": LABELS[:9]}, r"\(9,\)"), ({"images": IMAGES * 1.0}, "float64"),
    ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"\(0, 9, 9"), ({"images": IMAGES[:, :7]}, "7, 9.*8 pixels"),
    ({"labels": LABELS * 0}, "1 classes"), ({"test_images": IMAGES[:2], "test_labels": LABELS[:2]}, " 0 of one")])
def test_what_an_npz_lacks_is_named(arrays, said, tmp_path):
    with pytest.raises(DataError, match="mine.*" + said):
        npz(tmp_path, **arrays)


def test_a_cut_file_and_a_missing_one_are_named(tmp_path):
    npz(tmp_path)
    picture = folder_of(tmp_path / "pets", lambda i: PIL.Image.new("L", (12, 10), i)) / "cat" / "0.png"
    (tmp_path / "empty").mkdir()
    for file, length in ((tmp_path / "mine.npz", 900), (picture, 40)):
        file.write_bytes(file.read_bytes()[:length])
    for name, said in (("mine.npz", r"mine\.npz"), ("pets", r"0\.png"), ("empty", "empty"), ("none.npz", r"none\.npz"),
                       ("folder", "'folder'")):              # torchvision.datasets.folder is a module, and no data set
        with pytest.raises(DataError, match=said):
            load_pictures(name, tmp_path)


def test_run_py_takes_pictures_from_where_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert [value_of("dataset", name) for name in ("pets", "KMNIST")] == [str(tmp_path / "pets"), "KMNIST"]


def test_torchvision_s_sets_are_upright_whatever_they_call_their_parts(tmp_path, monkeypatch):
    """EMNIST's files hold rows as columns; SVHN's colours come first, and it has neither `train` nor names."""
    class EMNIST(list):
        def __init__(self, root, split, train, download):
            super().__init__(range(10))
            self.data, self.targets, self.classes = np.zeros((10, 28, 28), np.uint8), np.arange(10) % 2, [split, "z - Z"]
            self.data[:, 3] = 255

    class SVHN(list):
        def __init__(self, root, split, download):
            super().__init__(range({"train": 20, "test": 4}[split]))
            self.data, self.labels = np.zeros((len(self), 3, 9, 8), np.uint8), np.arange(len(self)) % 2
            self.data[:, 2] = 255

    for fake in (EMNIST, SVHN):
        monkeypatch.setattr(torchvision.datasets, fake.__name__, fake)
    train, _ = load_pictures("EMNIST-letters", tmp_path)
    assert train.classes == ("letters", "z") and (train.images[0].view(28, 28)[:, 3] == 255).all()
    train, test = load_pictures("SVHN", tmp_path)
    assert (train.classes, train.shape, len(train), len(test)) == (("0", "1"), (3, 9, 8), 20, 4)
    assert train.images[0].view(3, 72).float().mean(1).tolist() == [0, 0, 255]
