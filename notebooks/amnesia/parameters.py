"""What a reader may set, checked; the call that begins a notebook's stage with it; and what a reader answers, checked."""

import torch

from .checkpoints import Workspace, refused
from .data import load_pictures, name_of
from .device import pick_device
from .evaluation import load_judge
from .reading import SMALL
from .stages import Stage

# From where to where a parameter may go. Where the ends are whole numbers, so must it be.
RANGES = {"steps": (1, 10**7), "batch_size": (1, 10**5), "latent_dim": (1, 128), "n_samples": (1, 10**9),
          "n_per_class": (2, 10**5), "seed": (0, 2**63 - 1), "learning_rate": (1e-12, 1e3), "weight_decay": (0.0, 1e3),
          "dropout": (0.0, 0.99), "lam": (0.0, 1e12), "gamma": (0.0, 1e12)}
CHOICES = {"overwrite": (True, False), "use_drive": (True, False), "full": (True, False),
           "remember": ("distil", "replay"), "schedule": ("one-cycle", "constant")}
# Of each stage: the file that it makes; those that it reads beside the model, each made from those before it; and what shapes
# the file, beside `dataset` and `seed`, and is recorded
STAGES = {"01": ("cvae.pt", (), "steps batch_size learning_rate schedule weight_decay dropout latent_dim"),
          "02": ("fim-{model}.pt", (), "model n_samples"),
          "03": ("amnesiac-{tag}.pt", ("fim-{model}.pt",),
                 "model forget steps batch_size learning_rate schedule lam gamma remember surrogate"),
          "04": ("samples-{tag}.pt", ("amnesiac-{tag}.pt",), "model forget n_per_class"),
          "05": ("evaluation-{tag}.json", ("amnesiac-{tag}.pt", "samples-{tag}.pt"), "model forget")}
DIGITS = {"shape": [1, 28, 28], "classes": list("0123456789")}      # of files from before these were recorded


def check_parameters(**parameters):
    """Raises ValueError, naming the parameter, for what is no number of Python's own, or lies outside its range, and for
    what is none of its choices: "no" would be taken for yes."""
    for name, value in parameters.items():
        if name in CHOICES and repr(value) not in map(repr, CHOICES[name]):
            raise ValueError(f"{name}={value!r}: expected {' or '.join(map(repr, CHOICES[name]))}.")
        least, most = RANGES.get(name, (None, None))
        if name in RANGES and not (type(value) in (int, type(least)) and least <= value <= most):      # NaN is in no range
            raise ValueError(f"{name}={value!r}: expected {type(least).__name__}, from {least:,} to {most:,}.")


def labels_of(asked, classes, name="forget"):
    """Labels or names of classes, one or several, as a sorted list of labels. Raises ValueError, naming the parameter."""
    asked = asked.tolist() if hasattr(asked, "tolist") else asked
    labels = {key: label for written in (str.casefold, str)            # "a" is not "A" where both are there
              for label, title in enumerate(classes) for key in (label, written(title))}
    try:
        return sorted({labels[each if isinstance(each, str) else int(str(each))]            # which is neither True nor 3.0
                       for each in (asked if isinstance(asked, (list, tuple, set)) else [asked])})
    except (KeyError, ValueError):
        raise ValueError(f"{name}={asked!r}: expected a list of labels from 0 to {len(classes) - 1}, or of names among "
                         f"{', '.join(classes)}, as in {name}=[0] or {name}=[{classes[0]!r}]; papermill: by -y.") from None


def check_pictures(data, train, path):
    """Raises WorkspaceError unless a model was trained on these pictures, by their digest in `data`; {} says nothing."""
    small = train.name.startswith(SMALL) and any(name.startswith("MNIST") for name in data)     # it is a part of MNIST
    if data and data.get(train.name) != train.digest and not small:
        raise refused(path, f"was trained on {', '.join(data)}, which is not the {train.name} that `dataset` names now.")


def begin(number, notebook):
    """Begins stage `number`, "01" to "05", of a notebook (its globals()): parameters, workspace, device, inputs, its file.

    Returns a Stage whose attributes are the parameters (stage.steps), and more: dev, the torch.device; store, the Workspace;
    classes, the names; shape, (channels, height, width); files, its inputs as Saved, by "original", "fim", "amnesiac",
    "samples", "judge"; train and test, Pictures, for 01 and 05; forgotten, kept and before, labels; tag, what files of these
    are called by, "0" or "3-8". A parameter that is changed later has no effect until this is called again, and Stage.load
    says so. Raises ValueError for a bad parameter, DataError for bad pictures, and WorkspaceError for an input that is
    missing, damaged, or does not belong to the others.
    """
    makes, reads, shaping = STAGES[number]
    shaping = ["dataset", "seed", *shaping.split()]
    given = {name: notebook[name] for name in (*shaping, "overwrite", "use_drive", "workspace", "device")}
    check_parameters(**given)
    settings = {name: given[name] for name in shaping} | {"dataset": name_of(given["dataset"])}
    store, dev = Workspace(given["workspace"], given["use_drive"], given["dataset"]), pick_device(given["device"])
    data = load_pictures(given["dataset"], store.data, dev) if number in ("01", "05") else []
    files, more = {}, dict(zip(("train", "test"), data, strict=False))
    if number == "01":
        train, data = data[0], data[:1]
        pictures = {"shape": [*train.shape], "classes": [*train.classes], "data": {train.name: train.digest}}
    else:
        settings["model"] = model = str(given["model"]).removesuffix(".pt")     # "cvae.pt" is meant as "cvae"
        original = files["original"] = store.load(f"{model}.pt")
        pictures = getattr(original, "pictures", DIGITS | {"data": original.lineage if model == "cvae" else {}})
        if (of := original.settings.get("dataset", settings["dataset"])) != settings["dataset"]:
            raise ValueError(f"dataset={given['dataset']!r}: {original.path} is of {of!r}.")
    classes = pictures["classes"]
    if "forget" in given:
        before = sorted({*original.settings.get("forget", []), *original.settings.get("forgotten_before", [])})
        settings["forget"] = forgotten = labels_of(given["forget"], classes)
        kept = [label for label in range(len(classes)) if label not in {*forgotten, *before}]
        if not forgotten or not kept or {*before} & {*forgotten}:
            raise ValueError(f"forget={given['forget']!r}: expected some of {len(classes)} classes, and not all. This model "
                             f"has forgotten {', '.join(classes[label] for label in before) or 'none'} already.")
        more |= {"forgotten": forgotten, "kept": kept, "before": before, "tag": "-".join(map(str, sorted(before + forgotten)))}
    names = settings | more
    for file in reads:
        files[file.split("-")[0]] = store.load(file.format_map(names), made_from=[*files.values()])
    if number == "03":
        settings["forgotten_before"] = before
        if settings["surrogate"] != "noise":
            settings["surrogate"], = labels_of(settings["surrogate"], classes, "surrogate")
            if settings["surrogate"] in forgotten:
                raise ValueError(f"surrogate={given['surrogate']!r} is itself to be forgotten: choose a kept one.")
    if number == "05":
        check_pictures(pictures["data"], data[0], original.path)
        files["judge"] = load_judge(store, dev, pictures["data"])
    return Stage(store, makes.format_map(names), settings, [*files.values(), *data], given["overwrite"], **more, files=files,
                 store=store, dev=dev, notebook=notebook, pictures=pictures, shape=tuple(pictures["shape"]),
                 classes=tuple(classes), given={name: repr(value) for name, value in given.items()})


def fault(answer, truth, rel):
    """What is wrong with an answer, in words; "" if nothing is."""
    if isinstance(truth, str):
        return "" if answer == truth else "look again."
    answer, truth = (torch.as_tensor(value).detach().cpu().double().squeeze() for value in (answer, truth))
    if answer.shape != truth.shape:
        return f"its shape is {tuple(answer.shape)}, and should be {tuple(truth.shape)}."
    if (answer - truth).norm() <= rel * truth.norm():
        return ""
    factor = (answer * truth).sum() / truth.square().sum()
    near = (answer - factor * truth).norm() <= rel * (factor * truth).norm()
    return f"it is {factor:.3g} times what it should be." if near else "its shape is right, its values are not."


def check(answer, truth, because, rel=1e-3, on=()):
    """Says in a sentence whether an answer is right, and else what is wrong: its shape, or a factor.

    Words must be the same, numbers and tensors within a share `rel`, in norm. on: what to call answer and truth with, where
    they are functions. Never raises: None, a blank, is not answered yet; what cannot be compared is not right yet.
    """
    if answer is None:
        return print("Not answered yet: put your answer in the place of None, and run this cell again.")
    try:
        wrong = fault(*(value(*on) if callable(value) else value for value in (answer, truth)), rel)
    except Exception as error:                              # whatever a reader's own function raises
        wrong = f"{type(error).__name__}: {error}"
    print(f"Not yet right: {wrong}" if wrong else f"Right: {because}")
