"""The four idx files that a data set comes in: from disk, else from a mirror, and checked before every use."""

import gzip
import hashlib
import struct
import threading
import zlib
from concurrent.futures import Future
from http.client import HTTPException
from itertools import product
from math import prod
from urllib.request import Request, urlopen

import torch

from ..training import progress
from .disk import WorkspaceError, is_there, make_folder, read_whole, reason, write_atomic

SILENCE = 20  # seconds: a mirror that sends nothing for so long is given up
PIXELS = 28 * 28

# The uncompressed idx files of both splits, and how long they are
RAW_SIZES = {"train-images-idx3-ubyte": 16 + 60_000 * PIXELS, "train-labels-idx1-ubyte": 8 + 60_000,
             "t10k-images-idx3-ubyte": 16 + 10_000 * PIXELS, "t10k-labels-idx1-ubyte": 8 + 10_000}

# MD5 of these files, in the same order. Checked before every use: a file on disk may have been cut off or edited since it
# was downloaded. Of KMNIST only the archives' MD5 is published, which torchvision checks at the download.
RAW_MD5 = {
    "MNIST": ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
              "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    "FashionMNIST": ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
                     "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
}

# How a file is called in torchvision's folder, packed, and in Kaggle's copies
FORMS = "{0}/{0}", "{0}", "{0}.gz", "{1}", "{1}.gz"


def idx_files(dataset, folder):
    """{name: content} of the four idx files: from disk, else downloaded, and kept there if that can be done.

    They belong in torchvision's <folder>/<dataset>/raw, and are taken from <folder>/<dataset>, <folder>/raw or <folder>
    itself too, also as .gz. Raises ConnectionError if they can't be downloaded, Unreadable if they are there and can't be
    read, and ValueError, with what differs, for files of another data set.
    """
    raw = folder / dataset / "raw"
    for place, form in product((raw, raw.parent, folder / "raw", folder), FORMS):
        paths = {file: place / form.format(file, file.replace("-idx", ".idx")) for file in RAW_SIZES}
        if all(is_there(path) for path in paths.values()):
            files = {file: unpacked(path) for file, path in paths.items()}
            for file, path in paths.items():
                if differs := difference(dataset, file, files[file]):
                    raise ValueError(f"{path} is not {dataset}'s own file: {differs}. Move the four files away to have them "
                                     f"downloaded, or set AMNESIA_DATA to a folder that has {dataset}/raw.")
            return files
    files = download(dataset)
    try:
        make_folder(raw)
        for file, content in files.items():
            write_atomic(raw / file, content)
    except (OSError, WorkspaceError) as error:
        print(f"{dataset} could not be kept on disk, so the next run will download it again ({error})")
    return files


def unpacked(path):
    """The content of a file, without its gzip."""
    content = read_whole(path)
    try:
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({reason(error)}). Move it away.") from error


def difference(dataset, file, content):
    """What tells an idx file from the data set's own, in words; "" if it is that."""
    image = (28, 28) if "images" in file else ()
    start = 8 + 4 * len(image)                              # bytes of the header: a magic number and the array's shape
    shape = (RAW_SIZES[file] - start) // prod(image), *image
    magic, *said = struct.unpack_from(f">{start // 4}I", content.ljust(start, b"\0"))
    if magic != 0x801 + len(image):
        return "it does not begin as an idx file of " + ("images" if image else "labels")
    if tuple(said) != shape:
        return f"its header says {' × '.join(map(str, said))}, not {' × '.join(map(str, shape))}"
    if len(content) != RAW_SIZES[file]:
        return f"it has {len(content):,} bytes, not {RAW_SIZES[file]:,}"
    digest, place = hashlib.md5(content).hexdigest(), [*RAW_SIZES].index(file)
    owners = [owner for owner, known in RAW_MD5.items() if known[place] == digest]
    if dataset in owners or (not owners and dataset not in RAW_MD5):
        return ""
    return f"it is {owners[0]}'s" if owners else "other bytes, by their MD5"


def download(dataset):
    """{name: content} of the four idx files, all from the first of torchvision's mirrors that has them whole.

    Nothing is written, so that any number of runs may download at once. Raises ConnectionError.
    """
    from torchvision import datasets  # takes a second to import, and only a first run needs it

    source, failures = getattr(datasets, dataset), []
    for mirror in source.mirrors:
        try:
            return {archive.removesuffix(".gz"): gzip.decompress(receive(mirror + archive, md5))
                    for archive, md5 in source.resources}
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"{mirror}: {reason(error)}")
    raise ConnectionError("; ".join(failures))


def receive(url, md5):
    """The bytes at an address. Raises OSError if it is silent for SILENCE seconds, ValueError for other bytes.

    It is called in a thread, which can be left behind: looking up a name or trying all of its addresses has no time limit.
    """
    answer = Future()

    def call():
        try:
            answer.set_result(urlopen(Request(url, headers={"User-Agent": "pytorch/vision"}), timeout=SILENCE))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    content, name = bytearray(), url.rpartition("/")[2]
    with answer.result(SILENCE) as response, progress(desc=name, unit="B", unit_scale=True, delay=1) as bar:
        while chunk := response.read(2**15):
            content += chunk
            bar.update(len(chunk))
    if hashlib.md5(content).hexdigest() != md5:
        raise ValueError("sent something else")
    return content


def split_of(files, split):
    """Images (N, 784) uint8 and labels (N,) int64 of one split of these files."""
    images, labels = (torch.frombuffer(bytearray(files[f"{split}-{name}-ubyte"]), dtype=torch.uint8, offset=offset)
                      for name, offset in (("images-idx3", 16), ("labels-idx1", 8)))
    return images.view(-1, PIXELS), labels.long()
