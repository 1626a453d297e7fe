"""The four idx files that a data set comes in: from disk, else from a mirror, and checked before every use."""

import gzip
import hashlib
import queue
import threading
from http.client import HTTPException
from urllib.request import Request, urlopen

import torch

from ..training import progress
from .disk import WorkspaceError, is_there, make_folder, read_whole, reason, write_atomic

SILENCE = 20  # seconds: a mirror that sends nothing for so long is given up
PIXELS = 28 * 28

# In torchvision's layout, <root>/<dataset>/raw: the uncompressed idx files of both splits, and how long they are
RAW_SIZES = {"train-images-idx3-ubyte": 16 + 60_000 * PIXELS, "train-labels-idx1-ubyte": 8 + 60_000,
             "t10k-images-idx3-ubyte": 16 + 10_000 * PIXELS, "t10k-labels-idx1-ubyte": 8 + 10_000}

# MD5 of these files, in the same order. Checked before every use: a file on disk may have been cut off or edited since it
# was downloaded. Of KMNIST only the archives' MD5 is published, which torchvision checks at the download; here its size is.
RAW_MD5 = {
    "MNIST": ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
              "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    "FashionMNIST": ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
                     "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
}


def idx_files(dataset, raw):
    """{name: content} of the four idx files: from the folder `raw`, else downloaded, and kept there if that can be done.

    Raises ConnectionError if they can't be downloaded, and Unreadable if they are there and can't be read.
    """
    if all(is_there(raw / file) for file in RAW_SIZES):
        return {file: read_whole(raw / file) for file in RAW_SIZES}
    files = download(dataset)
    try:
        make_folder(raw)
        for file, content in files.items():
            write_atomic(raw / file, content)
    except (OSError, WorkspaceError) as error:
        print(f"{dataset} could not be kept on disk, so the next run will download it again ({error})")
    return files


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
    """The bytes at an address. Raises TimeoutError if it is silent for SILENCE seconds, ValueError for other bytes.

    Read in a thread, which can be left behind: looking up a name or trying all of its addresses has no time limit.
    """
    chunks = queue.SimpleQueue()

    def read():
        try:
            with urlopen(Request(url, headers={"User-Agent": "pytorch/vision"}), timeout=SILENCE) as response:
                while chunk := response.read(2**15):
                    chunks.put(chunk)
            chunks.put(b"")
        except Exception as error:
            chunks.put(error)

    threading.Thread(target=read, daemon=True).start()
    content = bytearray()
    with progress(desc=url.rpartition("/")[2], unit="B", unit_scale=True, delay=1) as bar:
        while True:
            try:
                chunk = chunks.get(timeout=SILENCE)
            except queue.Empty:
                raise TimeoutError(f"no answer in {SILENCE} seconds") from None
            if isinstance(chunk, Exception):
                raise chunk
            if not chunk:
                break
            content += chunk
            bar.update(len(chunk))
    if hashlib.md5(content).hexdigest() != md5:
        raise ValueError("sent something else")
    return content


def read_idx(dataset, raw, files, split):
    """Images (N, 784) uint8 and labels (N,) int64 of one split, after a check of the files' sizes and digests."""
    published = dict(zip(RAW_SIZES, RAW_MD5.get(dataset, ()), strict=False))
    arrays = []
    for file, header, width in ((f"{split}-images-idx3-ubyte", 16, PIXELS), (f"{split}-labels-idx1-ubyte", 8, 1)):
        content = files[file]
        digest = hashlib.md5(content).hexdigest()
        if len(content) != RAW_SIZES[file] or digest != published.get(file, digest):
            raise ValueError(f"{raw / file} is damaged: its size or its MD5 is not that of the original file. "
                             "Delete it and run again to download it anew.")
        arrays.append(torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(-1, width))
    return arrays[0], arrays[1].view(-1).long()
