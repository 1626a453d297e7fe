"""Where the digits come from: disk, a (local stand-in for the) download, the offline fallback; and what is refused."""

import functools
import gzip
import hashlib
import http.server
import struct
import threading

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from amnesia import Digits, check_surrogate, class_names, forget_set, grow, load_digits
from amnesia import data as data_module
from amnesia.files import WorkspaceError

IMAGES, LABELS = np.arange(20 * 784, dtype=np.uint8).reshape(20, 784), np.arange(20, dtype=np.uint8) % 10


def idx_files():
    """A tiny data set in the four idx files' format."""
    images = struct.pack(">IIII", 0x803, 20, 28, 28) + IMAGES.tobytes()
    labels = struct.pack(">II", 0x801, 20) + LABELS.tobytes()
    return {name: images if "images" in name else labels for name in data_module.RAW_SIZES}


@pytest.fixture
def offline(monkeypatch):
    """Data sets of 20 images, whose mirrors are unreachable."""
    monkeypatch.delenv("AMNESIA_DATA", raising=False)
    digests = tuple(hashlib.md5(content).hexdigest() for content in idx_files().values())
    monkeypatch.setattr(data_module, "RAW_MD5", dict.fromkeys(data_module.RAW_MD5, digests))  # none for KMNIST
    monkeypatch.setattr(data_module, "RAW_SIZES", {name: len(content) for name, content in idx_files().items()})
    for dataset in data_module.CLASS_NAMES:
        monkeypatch.setattr(getattr(torchvision.datasets, dataset), "mirrors", ["http://127.0.0.1:9/"])


@pytest.fixture
def mirror(offline, tmp_path, monkeypatch):
    """A local web server in the place of torchvision's mirrors."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name, content in idx_files().items():
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for dataset in data_module.CLASS_NAMES:
        monkeypatch.setattr(getattr(torchvision.datasets, dataset), "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(getattr(torchvision.datasets, dataset), "resources", resources)
    yield folder
    server.shutdown()


@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST", "KMNIST"])
def test_download_then_disk(mirror, tmp_path, dataset):
    train, test = load_digits(dataset, tmp_path / "data")
    assert torch.equal(train.images, torch.tensor(IMAGES)) and torch.equal(test.labels, torch.tensor(LABELS).long())
    for file in mirror.iterdir():
        file.unlink()
    again, _ = load_digits(dataset, tmp_path / "data")
    assert again.digest == train.digest and dataset in train.name and len(class_names(dataset)) == 10


def test_a_damaged_file_is_named(mirror, tmp_path):
    load_digits("MNIST", tmp_path)
    damaged = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(damaged.read_bytes())
    content[5000] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is damaged.*Delete it"):
        load_digits("MNIST", tmp_path)


def test_a_cut_off_file_is_named_where_no_digest_is_known(mirror, tmp_path):
    load_digits("KMNIST", tmp_path)
    damaged = tmp_path / "KMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte is damaged.*Delete it"):
        load_digits("KMNIST", tmp_path)


def test_other_data_sets_have_no_stand_in(offline, tmp_path):
    with pytest.raises(WorkspaceError, match=r"(?s)FashionMNIST is not in .*raw.*Put the four idx files there"):
        load_digits("FashionMNIST", tmp_path / "data")


def test_offline_falls_back_to_real_digits_and_says_so(offline, tmp_path, capsys):
    train, test = load_digits("MNIST", tmp_path / "data")
    assert "5,000 real MNIST digits" in capsys.readouterr().out
    assert (len(train), len(test)) == (4000, 1000)
    assert train.labels.bincount().tolist() == [400] * 10 and test.labels.bincount().tolist() == [100] * 10
    assert "4,000 images" in train.name  # so that nothing trained on it passes for trained on all of MNIST


def test_the_environment_variable_goes_first(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("AMNESIA_DATA", str(tmp_path / "elsewhere"))
    load_digits("MNIST", tmp_path / "unused")
    assert (tmp_path / "elsewhere" / "MNIST" / "raw").is_dir() and not (tmp_path / "unused").exists()


def test_unknown_dataset():
    with pytest.raises(ValueError, match=r"dataset='CIFAR10'.*MNIST"):
        load_digits("CIFAR10", ".")


def test_batches_are_scaled_and_paired(digits):
    torch.manual_seed(0)
    x, y = digits[0].batch(64)
    assert x.shape == (64, 784) and x.min() == 0 and x.max() == 1 and torch.equal(y.sum(1), torch.ones(64))
    few = Digits(torch.arange(10, dtype=torch.uint8)[:, None].expand(10, 784).contiguous(), torch.arange(10))
    epochs = [torch.cat([few.batch(5)[1] for _ in range(2)]).argmax(1).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len(set(map(tuple, epochs))) == 3
    threes = digits[1].only([3, 8])
    assert set(threes.labels.tolist()) == {3, 8}


@pytest.mark.parametrize(("images", "labels"), [
    (torch.zeros(3, 784), torch.zeros(3).long()), (torch.zeros(3, 28, 28).byte(), torch.zeros(3).long()),
    (torch.zeros(3, 784).byte(), torch.zeros(2).long()), (torch.zeros(3, 784).byte(), torch.tensor([0, 1, 10]))])
def test_wrong_shapes_types_and_labels_are_refused(images, labels):
    with pytest.raises(ValueError, match="mine: "):
        Digits(images, labels, "mine")


@given(st.sets(st.integers(0, 9), min_size=1, max_size=9))
def test_forgotten_and_kept_share_out_the_labels(labels):
    forgotten, kept = forget_set(list(labels))
    assert forgotten == sorted(labels) and sorted(forgotten + kept) == list(range(10))


@given(st.one_of(st.just([]), st.just(list(range(10))), st.floats(), st.text(), st.booleans(), st.none(),
                 st.lists(st.integers().filter(lambda d: not 0 <= d <= 9), min_size=1), st.lists(st.floats(), min_size=1)))
def test_other_values_of_forget_are_refused(forget):
    with pytest.raises(ValueError, match="forget="):
        forget_set(forget)


def test_surrogates():
    check_surrogate("noise", [0])
    check_surrogate(3, [0])
    for bad in ("grey", 10, 1.0, True, None):
        with pytest.raises(ValueError, match="surrogate="):
            check_surrogate(bad, [0])
    with pytest.raises(ValueError, match="itself among the forgotten"):
        check_surrogate(3, [3, 8])


def test_a_small_set_is_grown_by_copies_and_a_large_one_is_itself():
    generator = torch.Generator().manual_seed(0)
    small = Digits(torch.randint(256, (30, 784), generator=generator).byte(), torch.arange(30) % 10)
    grown = grow(small, seed=1, size=100)
    assert len(grown) == 90 and torch.equal(grown.images[:30], small.images)
    assert torch.equal(grown.labels, small.labels.repeat(3)) and not torch.equal(grown.images[30:60], grown.images[60:])
    assert grow(small, 1, 100).digest == grown.digest != grow(small, 2, 100).digest
    assert grow(small, 1, 59) is small
