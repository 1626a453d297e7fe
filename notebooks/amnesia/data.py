"""Labelled pictures as uint8 tensors on the device: a data set, its shuffle, its batches.

Everything fits in memory (MNIST: 47 MB), so there is no DataLoader: a batch is one index, from a shuffle, into a tensor.
"""

import hashlib
from math import prod

import torch
import torch.nn.functional as F


class Pictures:
    """Labelled pictures of one shape, which live on one device.

    images: (N, P) uint8, P = channels * height * width; labels: (N,) whole numbers from 0 to K - 1; name: what messages call
    them; shape: (channels, height, width); classes: the names of the K labels. Raises ValueError for anything else.
    """

    def __init__(self, images, labels, name="pictures", shape=(1, 28, 28), classes=tuple("0123456789")):
        n, pixels, most = len(images), prod(shape), len(classes) - 1
        if images.dtype != torch.uint8 or images.shape != (n, pixels) or not n:
            raise ValueError(f"{name}: images must be uint8 of shape (N, {pixels}) with N > 0, found {images.dtype} of shape "
                             f"{tuple(images.shape)}.")
        if labels.shape != (n,) or labels.is_floating_point() or labels.min() < 0 or labels.max() > most:
            raise ValueError(f"{name}: labels must be {n} whole numbers from 0 to {most}, found {labels}.")
        self.images, self.labels, self.name = images, labels.long(), name
        self.shape, self.classes = tuple(shape), tuple(classes)
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


def one_hot(labels, classes):
    """Labels (B,) as float32 (B, classes)."""
    return F.one_hot(labels, classes).float()


def picture(images, shape):
    """Flat images (..., P) as pictures: (..., H, W) where the shape (C, H, W) has one channel, else (..., C, H, W)."""
    return images.reshape(*images.shape[:-1], *(shape[1:] if shape[0] == 1 else shape))


def jitter(x, shape=(1, 28, 28), pixels=2.0, generator=None):
    """Images (B, P) turned by up to 12 degrees, scaled by up to 10 % and shifted by up to so many pixels of 28, at random."""
    where = generator.device if generator else x.device
    turn, scale, right, down = torch.rand(4, len(x), 1, generator=generator, device=where).to(x.device) * 2 - 1
    turn, scale, right, down = 0.21 * turn, 1 + 0.1 * scale, right * pixels / 14, down * pixels / 14
    cos, sin = scale * turn.cos(), scale * turn.sin()
    theta = torch.stack([torch.cat([cos, -sin, right], 1), torch.cat([sin, cos, down], 1)], 1)  # (B, 2, 3)
    size = len(x), *shape
    grid = F.affine_grid(theta, size, align_corners=False)
    edge = "zeros" if shape[0] == 1 else "border"           # the ground of a drawing in colours is seldom black
    return F.grid_sample(x.view(size), grid, align_corners=False, padding_mode=edge).flatten(1)


def grow(pictures, seed, size=60_000):
    """A small set grown to about the size of MNIST by jittered copies of itself; a large one is returned as it is.

    From 4,000 images a CVAE soon knows them by heart: fourteen copies of each, by up to half a pixel, stand for the hands
    that are missing. Large pictures get fewer copies: all together take 190 MB at most.
    """
    size = min(size, 4 * size * 784 // pictures.images.shape[1])
    copies = [pictures.images]
    generator = torch.Generator().manual_seed(seed)         # on the CPU: the same copies on every device
    for _ in range(size // len(pictures) - 1):
        copies.append((jitter(pictures.images.float() / 255, pictures.shape, 0.5, generator) * 255).round().byte())
    return pictures.of(torch.cat(copies), pictures.labels.repeat(len(copies))) if len(copies) > 1 else pictures
