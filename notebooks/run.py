# /// script
# requires-python = ">=3.11"
# ///
"""Sets up and runs the notebooks, by one command on any system; on Windows, `py` stands for `python3`.

  python3 notebooks/run.py                            the five, in order
  python3 notebooks/run.py 03 04 05 "forget=[3, 8]"   some of them, with another value for a parameter
  python3 notebooks/run.py studies/2 full=True        a study
  python3 notebooks/run.py 03_forget-Copy1            a copy of your own, by its full name
  python3 notebooks/run.py lab                        opens them in JupyterLab; further words go to it
  python3 notebooks/run.py test                       the tests; further words go to pytest
  python3 notebooks/run.py site                       the pages; further words go to tools/site.py

Packages go to .venv beside README.md, executed copies to executed/. A parameter goes to those notebooks that have it.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
FIVE = "01_train_cvae", "02_compute_fim", "03_forget", "04_sample", "05_evaluate"
STUDIES = ("studies/1_does_it_forget", "studies/2_at_what_cost", "studies/3_is_it_gone", "studies/4_elsewhere",
           "studies/5_yours")


def call(*command, cwd=None):
    """Runs a command to its end and returns its exit status. Ctrl-C reaches it as well, and it ends in its own way."""
    process = subprocess.Popen(list(map(str, command)), cwd=cwd)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            pass


def ends_well(*command):
    """Whether this command is there, can be run and ends well. It is not heard."""
    try:
        return subprocess.run(list(map(str, command)), capture_output=True).returncode == 0
    except OSError:
        return False


def make_environment():
    """Makes .venv, without pip. What has that name already may hold a reader's own, and is set aside."""
    if os.path.lexists(VENV):
        aside = next(path for path in (ROOT / f".venv-{i}" for i in range(1, 1000)) if not os.path.lexists(path))
        VENV.rename(aside)
        print(f"{VENV} can't be used here: its Python is gone, too old or another system's. It is kept as {aside.name}, and "
              "made anew.", flush=True)
    try:
        venv.create(VENV, symlinks=os.name != "nt")
    except OSError:  # no symbolic links, as on exFAT: venv does with copies, but not for lib64, unless that is there
        (VENV / "lib64").mkdir(parents=True, exist_ok=True)
        venv.create(VENV)


def set_up(requirements):
    """The Python of the virtual environment, made if need be, with all of a file of requirements.

    It is tried each time. What the shell says of other packages, and of where pip installs, is not for this environment.
    """
    folder = VENV / ("Scripts" if os.name == "nt" else "bin")
    python = folder / "python"
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        os.environ.pop(name, None)
    os.environ["PIP_USER"] = "0"  # goes before pip.conf, which may hold other things that are needed
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    if not ends_well(python, "-I", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"):
        make_environment()
    ways = ([python, "-I", "-m", "ensurepip"], [sys.executable, "-I", "-m", "pip", "--python", python, "install", "pip"],
            ["uv", "pip", "install", "--python", python, "pip"])  # uv makes environments without pip, Debian lacks ensurepip
    if not (ends_well(python, "-I", "-c", "import pip") or any(ends_well(*way) for way in ways)):
        sys.exit(f"{VENV} has no pip, and {sys.executable} can't put it there. Install python3-venv (Debian, Ubuntu) or uv, "
                 "then give the same command again.")
    install = python, "-I", "-m", "pip", "install", "--disable-pip-version-check", "-r", ROOT / requirements
    has_all = *install, "--isolated", "--no-user", "--no-index", "--no-deps", "--dry-run"  # fails if one is to be fetched
    if not ends_well(*has_all):
        print(f"Installing {requirements} in {VENV}: some minutes, once", flush=True)
        if status := call(*install):
            sys.exit(status)
        if not ends_well(*has_all):
            sys.exit(f"pip did not install into {VENV}. See where its settings send it: {python} -m pip config list")
    return python


def value_of(name, text):
    """A Python value, such as 1e-4, True or [3, 8]; what is none stands for itself."""
    place = os.path.abspath(os.path.expanduser(text))
    torchvisions = os.path.isdir(os.path.join(place, "raw"))
    if (name == "workspace" and text != "auto") or (name == "dataset" and os.path.exists(place) and not torchvisions):
        return place
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def path_of(word):
    """The notebook that a word names: one of the project's by its number, any by its full name. Exits if there is none."""
    name = word.replace("\\", "/").removeprefix("notebooks/").removesuffix(".ipynb")
    for known in (name, *(known for known in (*FIVE, *STUDIES) if known.startswith(f"{name}_"))):
        if (path := ROOT / "notebooks" / f"{known}.ipynb").is_file():
            return path
    sys.exit(f"{word!r} names no notebook. There are: {', '.join((*FIVE, *STUDIES))}.")


def chosen(words):
    """({path: its parameters}, in order; {parameter: value}) that these words ask for. Exits at one that fits nothing."""
    import papermill

    paths = [path_of(word) for word in [word for word in words if "=" not in word] or FIVE]
    parameters = {path: papermill.inspect_notebook(path) for path in sorted(paths)}
    values = {name: value_of(name, text) for name, _, text in (word.partition("=") for word in words if "=" in word)}
    defaults = {name: one["default"] for has in parameters.values() for name, one in has.items()}
    for name, value in values.items():
        if name not in defaults:
            sys.exit(f"No notebook of these has a parameter {name!r}. They have: {', '.join(defaults)}.")
        if defaults[name] in ("True", "False") and not isinstance(value, bool):
            sys.exit(f"{name}={value}: expected True or False.")
    return parameters, values


def run(words):
    """Runs the notebooks that the words ask for, and returns the exit status."""
    import papermill
    from traitlets.config import Config

    parameters, values = chosen(words)
    sys.stdout.reconfigure(errors="replace")  # a log file on Windows may have no letter for a bar's blocks
    encrypted = Config(KernelManager={"transport_encryption": "auto"})  # without, each kernel warns of eavesdroppers
    (ROOT / "executed").mkdir(exist_ok=True)
    for path, has in parameters.items():
        copy = ROOT / "executed" / path.name
        print(f"\n{path.name}", flush=True)
        try:
            papermill.execute_notebook(path, copy, {name: value for name, value in values.items() if name in has},
                                       progress_bar=False, stdout_file=sys.stdout, cwd=ROOT, config=encrypted)
        except papermill.PapermillExecutionError as error:
            sys.exit(f"{path.name} stopped: {error.ename}: {error.evalue}\nThe cell is marked in {copy}.")
        except KeyboardInterrupt:
            print(f"\n{path.name} was interrupted. The same command goes on from what was saved.")
            return 130
    print(f"\nExecuted copies, with all pictures, are in {ROOT / 'executed'}")
    return 0


def copy_project(folder):
    """Copies what is to be tested: the notebooks as git has them staged, where there is git, all else as it lies here.

    In the copy no test sees, or changes, a notebook that was answered, saved or duplicated, nor a reader's own files.
    """
    for path in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(path, folder)
    for part in ("benchmarks", "checkpoints/released", "figures/released", "notebooks", "tests", "tools"):
        shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("*.ipynb", ".*", "__pycache__"))
    for name in (*FIVE, *STUDIES):
        path = Path("notebooks", f"{name}.ipynb")
        here = staged = (ROOT / path).read_bytes()
        with suppress(OSError, subprocess.CalledProcessError):
            staged = subprocess.check_output(["git", "show", f":./{path.as_posix()}"], cwd=ROOT, stderr=subprocess.DEVNULL)
        if staged != here:
            print(f"{path} is tested as git has it, not as it is here; that takes: git add {path}", flush=True)
        Path(folder, path).write_bytes(staged)


def test(words):
    """Runs the tests in a copy of the project, and returns the exit status."""
    os.environ["PYTHONUTF8"] = "1"  # Windows would read the pages in another encoding
    os.environ.setdefault("AMNESIA_DATA", str(ROOT / "data"))
    python, workers = set_up("requirements-dev.txt"), ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy_project(folder)
        return call(python, "-m", "pytest", *workers, *words, cwd=folder)


def main(argv):
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}.")
    for name in ("AMNESIA_WORKSPACE", "AMNESIA_DATA"):
        if os.environ.get(name):  # as it is meant where the command is given: the notebooks run elsewhere
            os.environ[name] = os.path.abspath(os.path.expanduser(os.environ[name]))
    command, *words = argv or [""]
    if command == "lab":
        encrypted = "--KernelManager.transport_encryption=auto"
        return call(set_up("requirements.txt"), "-P", "-m", "jupyterlab", ROOT / "notebooks", encrypted, *words)
    if command == "test":
        return test(words)
    if command == "site":
        return call(set_up("requirements-site.txt"), ROOT / "tools" / "site.py", *words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="word", help="a notebook or a parameter; none: the five notebooks")
    words, python = parser.parse_args(argv).words, set_up("requirements.txt")
    return run(words) if os.path.samefile(sys.prefix, VENV) else call(python, __file__, *argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
