"""What a reader may set: checked, and named where it is wrong."""

from numbers import Integral

LABELS = range(10)

# From where to where a parameter may go. Where the ends are whole numbers, so must it be.
RANGES = {"steps": (1, 10**7), "batch_size": (1, 10**5), "latent_dim": (1, 128), "n_samples": (1, 10**9),
          "n_per_class": (2, 10**5), "seed": (0, 2**63 - 1), "learning_rate": (1e-12, 1e3), "weight_decay": (0.0, 1e3),
          "dropout": (0.0, 0.99), "lam": (0.0, 1e12), "gamma": (0.0, 1e12)}
SWITCHES = "overwrite", "use_drive", "full"  # True or False


def check_parameters(**parameters):
    """Raises ValueError, naming the parameter, for what is no number of Python's own, or lies outside its range, and for a
    switch that is not True or False: "no" would be taken for yes."""
    for name in SWITCHES:
        if not isinstance(parameters.get(name, False), bool):
            raise ValueError(f"{name}={parameters[name]!r}: expected True or False.")
    for name in parameters.keys() & RANGES.keys():
        value, (least, most) = parameters[name], RANGES[name]
        kinds, expected = ([int], "a whole number") if type(least) is int else ([int, float], "a number")
        if type(value) not in kinds or not least <= value <= most:    # NaN is in no range
            note = ""
            if isinstance(value, str):
                note = " This is text: YAML, and so papermill, takes 1e-4 for text and 1.0e-4 for a number."
            elif hasattr(value, "dtype"):
                note = f" Of NumPy's and torch's numbers, take {name}.item()."
            raise ValueError(f"{name}={value!r}: expected {expected} from {least:,} to {most:,}.{note}")


def check_dataset(source, dataset):
    """Raises ValueError if `source`, a Saved or anything with a name, was made with another data set."""
    known = getattr(source, "settings", {}).get("dataset")
    if known and known != dataset:
        raise ValueError(f"dataset={dataset!r}, but {source.name} was made with dataset={known!r}: choose that one, or run "
                         "01_train_cvae.ipynb with the other first.")


def forget_set(forget, before=()):
    """Checks the parameter `forget` and returns (forgotten, kept), two sorted lists of labels, those in `before` in neither.

    forget: a label or several, in a list, tuple, set or array; before: labels that the model has forgotten already. Raises
    ValueError unless they are some of the others, not all.
    """
    labels = as_python(forget)
    labels = labels if isinstance(labels, (list, tuple, set)) else [labels]
    if not all(map(is_label, labels)) or not 0 < len(set(labels)) < len(LABELS):
        raise ValueError(f"forget={forget!r}: expected one to nine different whole numbers from 0 to 9, as in "
                         "forget=[0] or forget=[3, 8] (for run.py: \"forget=[3, 8]\").")
    forgotten = sorted({int(d) for d in labels})
    kept = [d for d in LABELS if d not in {*forgotten, *before}]
    if not kept or set(before) & set(forgotten):
        raise ValueError(f"forget={forget!r}: this model has forgotten {list(before)} already. Choose others, and "
                         "leave one.")
    return forgotten, kept


def forget_from(saved, forget):
    """What the parameter `forget` asks of the model in a file (Saved): (forgotten, kept, before, name).

    forgotten, kept: as of forget_set(); before: what the model has forgotten already, sorted; name: all that it will have
    forgotten, as files are named by it: "0-3". Raises ValueError.
    """
    before = sorted({*saved.settings.get("forget", []), *saved.settings.get("forgotten_before", [])})
    forgotten, kept = forget_set(forget, before)
    return forgotten, kept, before, "-".join(map(str, sorted(before + forgotten)))


def settings_of(notebook, names, **more):
    """A function that returns {name: value} of these parameters of a notebook, checked, as they stand when it is called.

    notebook: its globals(); names: the parameters' names in one text; more: what else shapes the stage's file.
    """
    def settings():
        found = {name: notebook[name] for name in names.split()}
        if "forget" in found:
            found["forget"] = forget_set(found["forget"])[0]
        if "surrogate" in found:
            found["surrogate"] = check_surrogate(found["surrogate"], found["forget"])
        if found.get("remember", "distil") not in ("distil", "replay"):
            raise ValueError(f"remember={found['remember']!r}: expected 'distil' or 'replay'.")
        return found | more
    return settings


def check_surrogate(surrogate, forgotten):
    """Checks the parameter `surrogate` and returns it, "noise" or a label as a plain int.

    Raises ValueError for anything else, and for a label that is itself forgotten.
    """
    surrogate = as_python(surrogate)
    if surrogate == "noise":
        return "noise"
    if not is_label(surrogate):
        raise ValueError(f"surrogate={surrogate!r}: expected \"noise\" or a label from 0 to 9.")
    if surrogate in forgotten:
        raise ValueError(f"surrogate={surrogate} is itself among the forgotten labels {forgotten}: choose a kept one.")
    return surrogate


def as_python(value):
    """A number or an array of numpy or torch as Python's own number or list; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_label(value):
    """Whether this is a whole number from 0 to 9, and not True or False."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value in LABELS
