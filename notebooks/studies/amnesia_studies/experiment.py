"""What every run of a study starts from: the models and the images, in a workspace or released."""

import contextlib
import io
from copy import deepcopy
from functools import cache, cached_property

import torch

from amnesia import CVAE, Classifier, Workspace, ask, elbo, grey_reference, load_judge, load_pictures, pick_device
from amnesia.parameters import check_pictures, labels_of

from .denoiser import Denoiser, denoising_bound, drawings
from .logs import Log, sweep
from .methods import METHODS, OF_DENOISERS, Task
from .runs import RUNS
from .tables import table

SECOND_JUDGE = "attacks", "one-label", "diffusion-recovery", "rows"    # logs of runs that it scores


class Experiment:
    """A trained original, its Fisher information, the judges and the images, and what may be done with them again and again.

    Raises WorkspaceError for files that are missing or do not belong together. Another kind of model is told apart by these
    attributes: its file's name, its class, its methods, its bound on log p(x|c), how many samples of each label it is judged
    by, and how many by a mere look.
    """

    file, network, methods, bound, samples, looked_at = "cvae", CVAE, METHODS, staticmethod(elbo), 1000, 500

    def __init__(self, workspace="auto", dataset="MNIST", device="auto", use_drive=True):
        self.store, self.device = Workspace(workspace, use_drive, dataset), pick_device(device)
        self.train, self.test = load_pictures(dataset, self.store.data, self.device)
        self.data = {self.train.name: self.train.digest}
        original, judge = self.store.load(f"{self.file}.pt"), load_judge(self.store, self.device, self.data)
        check_pictures(original.lineage, self.train, original.path)
        fim = self.store.load(f"fim-{self.file}.pt", made_from=[original])
        self.original, self.judge = original.build(self.network, self.device), judge.build(Classifier, self.device)
        self.fim, self.recipe = {name: value.to(self.device) for name, value in fim.state.items()}, original.settings
        self.original.classes = len(self.train.classes)     # which a reader's own class may not say
        self.lineage = {source.name: source.digest for source in (original, fim, judge, self.train, self.test)}
        self.arguments = str(self.store.folder), dataset, device

    def __reduce__(self):
        return in_a_worker, (type(self), *self.arguments)   # which reads the files itself

    @cached_property
    def second_judge_file(self):
        """A judge of another seed, who scores what was found with the first one's guidance, as Saved."""
        return load_judge(self.store, self.device, self.data, seed=1)

    @cached_property
    def second_judge(self):
        """The same, as a model."""
        return self.second_judge_file.build(Classifier, self.device)

    @cached_property
    def real(self):
        """What the judge says of the real test images: (probabilities, features)."""
        return ask(self.judge, self.test.images)

    def grey(self, forgotten):
        """What the judge says of flat grey: (P of these labels, H)."""
        grey = grey_reference(self.judge, forgotten)
        return grey["forgotten_probability"], grey["entropy"]

    def split(self, forget):
        """(forgotten, kept): these labels, and the others. Raises ValueError unless they are some of them, not all."""
        forgotten = labels_of(forget, self.train.classes)
        kept = [label for label in range(len(self.train.classes)) if label not in forgotten]
        if not forgotten or not kept:
            raise ValueError(f"forget={forget!r}: expected some of {len(self.train.classes)} labels, and not all.")
        return forgotten, kept

    def task(self, forget, seed=0, scale=1.0):
        """What a method is given to forget these labels. The model is a copy: a method that trains it spoils nothing."""
        forgotten, kept = (torch.tensor(labels, device=self.device) for labels in self.split(forget))
        return Task(deepcopy(self.original), self.fim, self.train, forgotten, kept, seed, scale, self.recipe)

    def forget(self, method, forget, seed=0, scale=1.0, **options):
        """A model that has forgotten these labels by a method: a key of self.methods, or a function of a Task.

        Raises Diverged, and TypeError for what is no such model."""
        function = method if callable(method) else self.methods[method]
        model = function(self.task(forget, seed, scale), **options)
        kind, weights = type(self.original), {name: value.dtype for name, value in self.original.state_dict().items()}
        if not isinstance(model, kind) or {name: value.dtype for name, value in model.state_dict().items()} != weights:
            raise TypeError(f"{method} returned {model}: a method returns the new {kind.__name__}, with the original's weights "
                            "in float32. Call .float(), or torch.nn.utils.prune.remove, before you return the model.")
        return model.requires_grad_().eval()

    def run(self, settings, log="studies", n_jobs=-1, method=None, **more):
        """Does the runs with these settings, but for those that the workspace's log has; returns their table(), in order.

        settings: dicts of "method", "forget", "seed" and the method's options, as table().settings has them; log: a key of
        RUNS, which says what a run is (those of SECOND_JUDGE start from that judge too), or "rows/<name>"; method: a function
        that stands for the settings' "method"; more: what each new line of the log is to say besides. A run that raises, as one
        that diverges, ends them all; the same call goes on.
        """
        kind, *_ = log.split("/")
        judges = [self.second_judge_file] if kind in SECOND_JUDGE else []
        kept = Log(self.store.checkpoints / f"{log}.jsonl", self.lineage | {file.name: file.digest for file in judges})

        def run(source=None, **one):
            return RUNS[kind if "method" in one else None](self, **one | ({"method": method} if method else {}))

        records = sweep(run, settings, kept, n_jobs, **more)
        return table(records, log, "diffusion" if self.network is Denoiser else self.store.dataset, self.grey)


class DiffusionExperiment(Experiment):
    """An Experiment with a Denoiser, whose files are denoiser.pt and fim-denoiser.pt."""

    file, network, methods, bound, samples, looked_at = (
        "denoiser", Denoiser, OF_DENOISERS, staticmethod(denoising_bound), 500, 100)

    @cached_property
    def drawings(self):
        """What the original draws, as Pictures."""
        return drawings(self.original)

    def task(self, forget, seed=0, scale=1.0):
        """What a method is given to forget these labels."""
        task = super().task(forget, seed, scale)
        task.drawings, task.steps, task.learning_rate = self.drawings.only(self.split(forget)[1]), 400, 1e-3
        return task


@cache
def in_a_worker(kind, *arguments):
    """The Experiment of a worker process: read once, and without a word, since its output would end up in the notebook's."""
    with contextlib.redirect_stdout(io.StringIO()):
        return kind(*arguments)
