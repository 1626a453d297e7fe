"""What the set-up cell of a notebook leaves to the project, once it has found it: Colab's Drive, packages, the path.

Run as a script, for what lies in this package can be imported only after that.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

DRIVE = "/content/drive"                                     # where Colab mounts Google Drive
COLAB, KAGGLE = (Path(folder).is_dir() for folder in ("/content", "/kaggle"))
NEEDED = "matplotlib", "imageio", "tqdm", "joblib", "scipy", "pandas"    # torch is a hosted machine's own affair


def settled(root):
    """Where the project in `root` is to stay: there, but for a copy that was fetched into a temporary folder just now.

    That one is moved, whole or not at all, to the disk of Colab's machine, or to the working folder.
    """
    if root.suffix != ".part":
        return root
    home = Path("/content" if COLAB and not KAGGLE else "").absolute() / "selective-amnesia"
    if not (home / "notebooks").is_dir():                    # else another notebook was faster
        part = home.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)              # of a set-up that was cut off
        shutil.move(root, part)
        part.replace(home)
    return home


root = settled(Path(os.path.abspath(__file__)).parents[3])
if "google.colab" in sys.modules and not os.path.ismount(DRIVE):
    print("Google Drive is not mounted. Files on this machine do not survive a disconnect.")
    with suppress(OSError):
        os.rmdir(DRIVE)                                      # an empty one would be taken for a Drive that was lost
missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
if missing and (COLAB or KAGGLE):
    subprocess.run([sys.executable, "-m", "pip", "install", *missing], check=True)
sys.path[:0] = [path for path in (f"{root}/notebooks", f"{root}/notebooks/studies") if path not in sys.path]
