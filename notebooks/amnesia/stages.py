"""A stage: is its file there, made in this very way; how far did an unfinished run get; and the saving of it."""

import ast
import inspect
import json
import linecache
import textwrap
import time

import torch
from filelock import FileLock

from .checkpoints import SOURCE, Saved, WorkspaceError, pack, retry, sha256, there, write
from .device import generators

CONTRACT = "encode", "decode", "generate", "latent_dim", "config"   # what a model must have


def code_of(*functions):
    """{name: SHA-256} of these functions of a notebook and of those that they call: their code without its comments."""
    found, left = {}, [*functions]
    while left:
        function = inspect.unwrap(left.pop())
        if function.__module__ == "__main__" and function.__name__ not in found:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            found[function.__name__] = sha256(ast.unparse(tree))
            values = (function.__globals__.get(node.id) for node in ast.walk(tree) if isinstance(node, ast.Name))
            left += filter(inspect.isfunction, values)
    return found


class Stage:
    """One stage's output file: is it there already, how far did an unfinished run get, and the saving of it.

    name: the file that the stage makes; settings: the parameters that shape it, as plain values; inputs: what it is made
    from (Saved, or anything with a name and a digest). What is recorded is what the stage was begun with. more: what else a
    notebook is to find as attributes beside the settings (stage.steps); see parameters.begin.
    """

    given, notebook, pictures = {}, {}, None

    def __init__(self, workspace, name, settings, inputs=(), overwrite=False, **more):
        vars(self).update(settings | more)
        self.path, self.overwrite, self.save_seconds = workspace.checkpoints / name, overwrite, workspace.save_seconds
        self.saved_at = time.monotonic()
        # a reader's own model goes on to what is made from it
        kept = {name: digest for source in inputs for name, digest in getattr(source, "lineage", {}).items() if SOURCE(name)}
        lineage = {source.name: source.digest for source in inputs} | kept
        self.record = {"settings": settings, "lineage": lineage, "code": {}}

    @property
    def unfinished(self):
        """Where progress is saved: each set of settings has a file of its own, so runs side by side do not meet."""
        return self.path.with_name(f"{self.path.stem}.{sha256(json.dumps(self.record))[:8]}.unfinished.pt")

    def changes(self, saved):
        """What tells a file from what this stage would make, in words: ["lam=4 (was 0.4)", "another cvae.pt", ...]."""
        was = {key: getattr(saved, key, {}) for key in self.record}
        words = {"settings": "{}={!r} (was {!r})", "lineage": "another {}", "code": "{}() was edited"}
        return [words[key].format(name, now.get(name), was[key].get(name)) for key, now in self.record.items()
                for name in sorted(now.keys() | was[key].keys()) if now.get(name) != was[key].get(name)]

    def load(self, *functions, model=None):
        """The finished file, as Saved, if it was made with these settings, inputs and this code; else None.

        functions: those of the notebook that shape the result; model: that of notebook 01, untrained, whose class is part of
        it. A model that could not be read again raises WorkspaceError here, before it is trained.
        """
        if late := [name for name, value in self.given.items() if repr(self.notebook.get(name)) != value]:
            print(f"Changed since the cell “This stage”, and without effect until it is run again: {', '.join(late)}.")
        self.record["code"] = code_of(*functions)
        if model is not None:
            self.rehearse(model)
        if self.overwrite or not there(self.path):
            return None
        saved = Saved(self.path)
        if found := self.changes(saved):
            print(f"{self.path} is another run's, and will be kept beside the new one: {', '.join(found)}")
            return None
        print(f"Loaded, not made again: {self.path}, of these settings and this code (overwrite=True makes it again)")
        return saved

    def rehearse(self, model):
        """Saves the text of the cell or module that defines an untrained model, packs the model and rebuilds it. Raises
        WorkspaceError."""
        cls, lineage = type(model), self.record["lineage"]
        try:
            if lacks := {"CVAE", *CONTRACT} - {cls.__name__, *dir(model)}:
                raise AttributeError(f"{cls.__name__} lacks {', '.join(lacks)}")
            for name in filter(SOURCE, [*lineage]):         # of the cell before it was edited
                del lineage[name]
            function = next(value for value in vars(cls).values() if inspect.isfunction(value))
            source = "".join(linecache.getlines(inspect.unwrap(function).__code__.co_filename)).encode()
            name = f"model-{sha256(source)[:8]}.py"
            lineage[name] = sha256(source)
            write(self.path.with_name(name), source)
            content = {**self.record, "state": model.state_dict(), "config": model.config}
            with torch.random.fork_rng([]):                 # the run that follows draws what it would have drawn
                Saved(self.path, pack(self.path.name, content)).build(cls, "cpu")
        except Exception as error:
            raise WorkspaceError(f"Once saved, this model could not be read again, so it is not trained ({error}). Its class "
                                 f"is to be called CVAE, in one cell that holds all it needs, and to have {CONTRACT}.") from error

    def save(self, **content):
        """Saves the finished stage and returns it as Saved: state, config and metrics for a .pt, plain values for a .json.

        Another file that was there is kept, under a name that has the first digits of its digest.
        """
        content |= {"pictures": self.pictures} if self.pictures and self.path.suffix == ".pt" else {}
        packed = pack(self.path.name, {**self.record, **content})
        saved = Saved(self.path, packed)                    # checked before it is written
        with FileLock(self.path.with_name(".lock")):        # three that finish at once, one after the other
            if there(self.path) and (old := retry(self.path.read_bytes)) != packed:
                kept = self.path.with_name(f"{self.path.stem}.{sha256(old)[:8]}{self.path.suffix}")
                write(kept, old)
                print(f"{self.path.name} was another run's: kept as {kept}")
            write(self.path, packed)
        self.unfinished.unlink(missing_ok=True)
        return saved

    @property
    def due(self):
        """Is it time to save progress again?"""
        return time.monotonic() - self.saved_at > self.save_seconds

    def save_progress(self, parts, done, device):
        """Saves an unfinished run after so many steps, for resume. A save that fails is a warning: the next one may succeed.

        parts: what the run consists of, each by its name: a dict, or anything with state_dict and load_state_dict.
        """
        states = {name: part if isinstance(part, dict) else part.state_dict() for name, part in parts.items()}
        rng = {kind: module.get_rng_state() for kind, module in generators(device).items()}
        content = {**self.record, **states, "done": done, "rng": rng}
        try:
            write(self.unfinished, pack(self.unfinished.name, content))
        except WorkspaceError as error:
            print(f"Progress was not saved, and training goes on: {error}")
        self.saved_at = time.monotonic()

    def resume(self, parts, device):
        """Puts these parts, and the random state of `device`, back to where save_progress last saved this very run.

        Returns how many steps are done: 0 for a fresh start.
        """
        if not there(self.unfinished):
            return 0
        saved = Saved(self.unfinished)
        for name, part in parts.items():
            state = getattr(saved, name)
            if isinstance(part, dict):
                part.update({key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in state.items()})
            else:
                part.load_state_dict(state)
        for kind, module in generators(device).items():
            module.set_rng_state(saved.rng.get(kind, module.get_rng_state()))       # its own, if begun on another device
        print(f"Going on from step {saved.done:,}, saved in {self.unfinished}")
        return saved.done
