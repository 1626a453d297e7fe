"""What every run of a study starts from: the models and the digits, in a workspace or released; and the logs of runs."""

import contextlib
import json
import os
from copy import deepcopy
from functools import cache, cached_property, partial

import torch

from amnesia.data import CLASSES, load_digits
from amnesia.evaluation import ask, elbo, grey_reference, load_judge
from amnesia.models import CVAE, Classifier
from amnesia.processor import pick_device
from amnesia.storage.parameters import check_dataset, forget_set
from amnesia.storage.workspace import REPOSITORY, Workspace

from .methods import METHODS, Task
from .sweep import Log, sweep

ATTACKS = ("attacks", "one-label", "diffusion-recovery")    # logs of runs that the second judge scores


class Experiment:
    """The trained CVAE, its Fisher information, the judges and the digits, and what may be done with them again and again.

    A run is a function of an Experiment and of settings that JSON can hold: forget_and_score, forget_in_turn (scoring.py),
    forget_and_recover, forget_apart (recovery.py). Raises WorkspaceError for files that are missing or do not belong
    together. What another kind of model needs is said by four attributes: its class, its methods, its bound on log p(x|c),
    and how many samples of each label it is judged by.
    """

    network, methods, bound, samples = CVAE, METHODS, staticmethod(elbo), 1000

    def __init__(self, workspace="auto", dataset="MNIST", device="auto", model="cvae", use_drive=True):
        self.store, self.device = Workspace(workspace, use_drive, dataset), pick_device(device)
        cvae = self.store.load(f"{model}.pt")
        check_dataset(cvae, dataset)
        judge = load_judge(self.store, self.device)
        fim = self.store.load(f"fim-{model}.pt", made_from=[cvae])
        self.cvae, self.judge = cvae.build(self.network, self.device), judge.build(Classifier, self.device)
        self.fim, self.recipe = {name: value.to(self.device) for name, value in fim.state.items()}, cvae.settings
        self.train, self.test = load_digits(dataset, self.store.data, self.device)
        self.lineage = {source.name: source.digest for source in (cvae, fim, judge, self.train, self.test)}
        self.arguments = str(self.store.folder), dataset, device, model

    def __reduce__(self):
        return in_a_worker, (type(self), *self.arguments)   # which reads the files itself

    @cached_property
    def second_judge_file(self):
        """A judge of another seed, who scores what was found with the first one's guidance, as Saved."""
        return load_judge(self.store, self.device, seed=1)

    @cached_property
    def second_judge(self):
        """The same, as a model."""
        return self.second_judge_file.build(Classifier, self.device)

    @cached_property
    def real(self):
        """What the judge says of the real test images: (probabilities, features)."""
        return ask(self.judge, self.test.images)

    @cached_property
    def real_features(self):
        """The judge's features of the real test images of each label."""
        return [self.real[1][self.test.mask([label]).cpu()] for label in range(CLASSES)]

    def grey(self, forgotten):
        """What the judge says of flat grey: (P of these labels, H)."""
        grey = grey_reference(self.judge, forgotten)
        return grey["forgotten_probability"], grey["entropy"]

    def task(self, forget, seed=0, scale=1.0):
        """What a method is given to forget these labels. The model is a copy: a method that trains it spoils nothing."""
        forgotten, kept = (torch.tensor(labels, device=self.device) for labels in forget_set(forget))
        return Task(deepcopy(self.cvae), self.fim, self.train, forgotten, kept, seed, scale, self.recipe)

    def forget(self, method, forget, seed=0, scale=1.0, **options):
        """A CVAE that has forgotten these labels by a method, one of METHODS or a function of a Task. Raises Diverged."""
        function = method if callable(method) else self.methods[method].function
        cvae = function(self.task(forget, seed, scale), **options)
        if not isinstance(cvae, self.network):
            raise TypeError(f"{function.__name__} returned a {type(cvae).__name__}: a method returns the new CVAE.")
        return cvae

    def log(self, name="studies"):
        """The log <name>.jsonl in this workspace, of runs from these files; those of ATTACKS need the second judge too."""
        judges = [self.second_judge_file] if name in ATTACKS else []
        return Log(self.store.checkpoints / f"{name}.jsonl", self.lineage | {file.name: file.digest for file in judges})

    def run(self, function, rows, n_jobs=-1, cluster="", log="studies"):
        """The records of function(experiment, **settings) for {row: settings of its runs}; what is in the log is not run
        again."""
        grid = [settings for runs in rows.values() for settings in runs]
        return sweep(partial(function, self), grid, self.log(log), n_jobs, cluster)

    def records(self, own, log="studies"):
        """All records of a log: of this workspace's `own`, else of the released one."""
        return list(self.log(log).records().values()) if own else released(log, self.store.dataset)


def released(log, dataset="MNIST"):
    """All records of a released log."""
    return list(Log(released_folder(dataset) / f"{log}.jsonl").records().values())


def released_grey(forgotten, dataset="MNIST"):
    """What the judge of the released run says of flat grey: (P of these labels, H)."""
    evaluation = json.loads((released_folder(dataset) / f"evaluation-{forgotten[0]}.json").read_text())
    grey = evaluation["reference"]["grey"]
    return grey["forgotten_probability"], grey["entropy"]


def released_folder(dataset):
    """Where a data set's released checkpoints lie."""
    return REPOSITORY / "checkpoints" / "released" / ("" if dataset == "MNIST" else dataset)


@cache
def in_a_worker(kind, *arguments):
    """The Experiment of a worker process: read once, and without a word, since its output would end up in the notebook's."""
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        return kind(*arguments)
