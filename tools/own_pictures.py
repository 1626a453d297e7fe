"""Makes three small data sets without a network, to try the notebooks on: python tools/own_pictures.py [folder, else data]

  letters.npz   26 letters, white on black, 28 × 28 pixels, in the fonts that matplotlib brings, 400 of each
  digits8.npz   scikit-learn's 1,797 handwritten digits of 8 × 8 pixels
  drawings/     circles, squares and stars in random colours, 32 × 32 pixels, 150 of each
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
         "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
         "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10", "cmss10", "cmtt10")


def letter(text, font, random):
    """One letter as uint8 (28, 28): turned by up to 9 degrees and shifted by up to a pixel and a half."""
    large = Image.new("L", (112, 112))                      # four times as large: edges come out in greys
    ImageDraw.Draw(large).text(56 + random.uniform(-6, 6, 2), text, 255, font, anchor="mm")
    large = large.rotate(random.uniform(-9, 9), Image.Resampling.BILINEAR)
    return np.asarray(large.resize((28, 28), Image.Resampling.BOX))


def letters(each=400, seed=0):
    """{"images": (26 * each, 28, 28), "labels": (26 * each,), "names": (26,)}: the letters take turns."""
    random, names = np.random.default_rng(seed), "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [ImageFont.truetype(folder / f"{name}.ttf", size) for size in (74, 79, 84, 89, 94) for name in FONTS]
    images = [letter(text, fonts[random.integers(len(fonts))], random) for _ in range(each) for text in names]
    return {"images": np.stack(images), "labels": np.tile(np.arange(26), each), "names": np.array(list(names))}


def digits8():
    """{"images": (1797, 8, 8), "labels": (1797,)}"""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"images": np.round(digits.images * 255 / 16).astype(np.uint8), "labels": digits.target}


def drawing(kind, random):
    """A "circle", "square" or "star" as a picture of 32 × 32 in two random colours, a light ground and a dark shape."""
    ground, ink = random.integers(170, 256, 3), random.integers(0, 160, 3)
    picture = Image.new("RGB", (128, 128), tuple(map(int, ground)))
    corners = {"circle": 60, "square": 4, "star": 10}[kind]
    turns = random.uniform(-0.3, 0.3) + np.arange(corners) * 2 * np.pi / corners + np.pi / 4 * (kind == "square")
    reach = random.uniform(32, 54) * np.where((kind == "star") & (np.arange(corners) % 2 == 1), 0.45, 1)
    x, y = 64 + random.uniform(-10, 10, (2, 1)) + reach * np.stack([np.sin(turns), -np.cos(turns)])
    ImageDraw.Draw(picture).polygon(list(zip(x, y, strict=True)), tuple(map(int, ink)))
    return picture.resize((32, 32), Image.Resampling.BOX)


def drawings(folder, each=150, seed=0):
    """Writes folder/circle/000.png and so on."""
    random = np.random.default_rng(seed)
    for kind in ("circle", "square", "star"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            drawing(kind, random).save(folder / kind / f"{i:03}.png")


def main(folder="data"):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "letters.npz", **letters())
    np.savez_compressed(folder / "digits8.npz", **digits8())
    drawings(folder / "drawings")
    print(f"{folder.resolve()} holds letters.npz, digits8.npz and drawings/")


if __name__ == "__main__":
    main(*sys.argv[1:])
