# /// script
# requires-python = ">=3.11"
# ///
"""Sets up and runs the notebooks, by one command on any system; on Windows, `py` stands for `python3`.

  python3 notebooks/run.py                            the five, in order
  python3 notebooks/run.py 03 04 05 "forget=[3, 8]"   some of them, with another value for a parameter
  python3 notebooks/run.py studies/2 full=True        a study
  python3 notebooks/run.py lab                        opens them in JupyterLab; further words go to it
  python3 notebooks/run.py test                       the tests; further words go to pytest

Packages go to .venv beside README.md, executed copies to executed/. A parameter goes to those notebooks that have it.
"""

import argparse
import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
NOTEBOOKS = {path.relative_to(ROOT / "notebooks").with_suffix("").as_posix(): path
             for path in sorted((ROOT / "notebooks").rglob("[0-9]*_*.ipynb"))}  # "01_train_cvae", …, "studies/1_ten_digits"

WORKS = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
HAS = """
import sys
from importlib.metadata import version
from pip._vendor.packaging.requirements import Requirement
for one in map(Requirement, sys.argv[1:]):
    assert one.specifier.contains(version(one.name), prereleases=True)
"""


def call(*command):
    """Runs a command to its end and returns its exit status. Ctrl-C reaches it as well, and it ends in its own way."""
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            pass


def required(requirements):
    """The requirements in a file, and in those that it names by -r."""
    for line in (ROOT / requirements).read_text().splitlines():
        if line.startswith("-r"):
            yield from required(line.split()[1])
        elif line and not line.startswith("#"):
            yield line


def answers(python, code, *words):
    """Whether this Python is there and can be run, and this code ends well in it."""
    try:
        return subprocess.run([str(python), "-I", "-c", code, *words], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def set_up(requirements):
    """The Python of the virtual environment, made if need be, with all of a file of requirements.

    It is tried each time. What the shell says of other packages, and of where pip installs, is not for this environment.
    """
    folder = VENV / ("Scripts" if os.name == "nt" else "bin")
    python, wanted = folder / "python", list(required(requirements))
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        os.environ.pop(name, None)
    os.environ["PIP_USER"] = "0"  # goes before pip.conf, which may hold other things that are needed
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    if not answers(python, WORKS):
        if VENV.exists():
            print(f"{VENV} can't be used here: its Python is gone, too old or another system's, or it lacks pip. It is made "
                  "anew.", flush=True)
        status = call(sys.executable, "-I", "-m", "venv", "--clear", VENV)
        if status:
            sys.exit(status)
    if not answers(python, HAS, *wanted):
        print(f"Installing {requirements} in {VENV}: some minutes, once", flush=True)
        status = call(python, "-I", "-m", "pip", "install", "--disable-pip-version-check", "-r", requirements)
        if status:
            sys.exit(status)
        if not answers(python, HAS, *wanted):
            sys.exit(f"pip did not install into {VENV}. See where its settings send it: {python} -m pip config list")
    return python


def value_of(text):
    """A Python value, such as 1e-4, True or [3, 8]; what is none stands for itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def chosen(words):
    """({path: its parameters}, in order; {parameter: value}) that these words ask for. Exits at one that fits nothing."""
    import papermill

    asked = [word.replace("\\", "/").removeprefix("notebooks/").removesuffix(".ipynb") for word in words if "=" not in word]
    numbers = {name.split("_")[0]: name for name in NOTEBOOKS}
    names = [numbers.get(word, word) for word in asked] or [name for name in NOTEBOOKS if "/" not in name]
    for name in names:
        if name not in NOTEBOOKS:
            sys.exit(f"There is no notebook {name!r}. There are: {', '.join(NOTEBOOKS)}.")
    parameters = {NOTEBOOKS[name]: papermill.inspect_notebook(NOTEBOOKS[name]) for name in sorted(names)}
    values = {name: value_of(text) for name, _, text in (word.partition("=") for word in words if "=" in word)}
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

    parameters, values = chosen(words)
    sys.stdout.reconfigure(errors="replace")  # a log file on Windows may have no letter for a bar's blocks
    (ROOT / "executed").mkdir(exist_ok=True)
    for path, has in parameters.items():
        copy = ROOT / "executed" / path.name
        print(f"\n{path.name}", flush=True)
        try:
            papermill.execute_notebook(path, copy, {name: value for name, value in values.items() if name in has},
                                       progress_bar=False, stdout_file=sys.stdout, cwd=ROOT)
        except papermill.PapermillExecutionError as error:
            sys.exit(f"{path.name} stopped: {error.ename}: {error.evalue}\nThe cell is marked in {copy}.")
        except KeyboardInterrupt:
            print(f"\n{path.name} was interrupted. The same command goes on from what was saved.")
            return 130
    print(f"\nExecuted copies, with all pictures, are in {ROOT / 'executed'}")
    return 0


def main(argv):
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}.")
    if argv[:1] == ["lab"]:
        return call(set_up("requirements.txt"), "-m", "jupyterlab", ROOT / "notebooks", *argv[1:])
    if argv[:1] == ["test"]:
        os.environ["PYTHONUTF8"] = "1"  # Windows would read the pages in another encoding
        workers = "-n", "logical", "--maxprocesses", "4", "--dist", "loadfile"
        return call(set_up("requirements-dev.txt"), "-m", "pytest", *workers, *argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="word", help="a notebook or a parameter; none: the five notebooks")
    words, python = parser.parse_args(argv).words, set_up("requirements.txt")
    return run(words) if os.path.samefile(sys.prefix, VENV) else call(python, __file__, *argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
