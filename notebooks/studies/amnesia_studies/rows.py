"""What a study is to run: {row of its table: the settings of that row's runs}."""

from .methods import METHODS

REPLAY = "replay (ours)"       # Selective Amnesia with our settings and our replay, beside "as published"
OF_AVERAGES = ("with a margin", "distilled anew")   # which study 7 alone shows
EVERY_METHOD = {REPLAY if name == "selective amnesia" else name: {"method": name}
                for name in METHODS if name not in OF_AVERAGES}
OTHER_SEEDS = (1, 2, 3)        # than the original's, whose initial weights a reference of its seed would start from

# What studies 5 and 6 try to bring back: {row: the method and its options}
ATTACKED = {
    "original": {"method": "original"},
    REPLAY: {"method": "selective amnesia"},
    "· λ = 0": {"method": "selective amnesia", "lam": 0.0},
    "· λ = 0.1": {"method": "selective amnesia", "lam": 0.1},
    "· λ = 4": {"method": "selective amnesia", "lam": 4.0},
    "distilled amnesia": {"method": "distilled amnesia"},
    "· distilled, λ = 0": {"method": "distilled amnesia", "lam": 0.0},
    "adversarial amnesia": {"method": "adversarial amnesia"},
    "label edit": {"method": "label edit"},
    "dampening": {"method": "dampening"},
    "random label": {"method": "random label"},
    "retrain": {"method": "retrain"},
    "oracle": {"method": "oracle"},
    "· springs alike, λ = 0.1": {"method": "selective amnesia", "lam": 0.1, "importance": "identity"},
    "· prior for q": {"method": "selective amnesia", "posterior": "prior"},
    "· reach 0.3": {"method": "selective amnesia", "reach": 0.3},
    "· prior for q, reach 0.3": {"method": "selective amnesia", "posterior": "prior", "reach": 0.3}}


def grid(method, sets, seeds, **options):
    """The settings of a method's runs: one for each seed and each set of labels to forget."""
    return [{"method": method, "forget": list(labels), "seed": seed, **options} for seed in seeds for labels in sets]


def plan(choices, sets, seeds, **common):
    """{row: settings of its runs} for {row: its method and that method's options}; common: options of all rows."""
    return {row: grid(sets=sets, seeds=seeds, **options, **common) for row, options in choices.items()}


def by_labels(choices, sets, seeds=range(4), **common):
    """The same with a row for each set of labels: {(labels, row): settings of its runs}."""
    return {(", ".join(map(str, labels)), row): runs for labels in sets
            for row, runs in plan(choices, [labels], seeds, **common).items()}


# What study 11 asks of a diffusion model: {row: the method and its options}; what is tried to be had again, and the rest
DENOISERS_ATTACKED = {
    "original": {"method": "original"},
    "distilled": {"method": "selective amnesia", "lam": 0.0},
    "no label replayed": {"method": "selective amnesia", "lam": 0.0, "unconditional": "replay"},
    "retrain": {"method": "retrain"},
    "oracle": {"method": "oracle"}}
DENOISERS_SCORED = {
    "replay": {"method": "selective amnesia", "lam": 0.0, "remember": "replay"},
    "nothing, λ = 1": {"method": "selective amnesia", "lam": 1.0, "remember": "nothing"},
    "nothing, λ = 100": {"method": "selective amnesia", "lam": 100.0, "remember": "nothing"},
    "noise for grey": {"method": "selective amnesia", "lam": 0.0, "surrogate": "noise"},
    "distilled, λ = 0.1": {"method": "selective amnesia", "lam": 0.1},
    "distilled, λ = 1": {"method": "selective amnesia", "lam": 1.0},
    "distilled, λ = 10": {"method": "selective amnesia", "lam": 10.0},
    "distilled, λ = 100": {"method": "selective amnesia", "lam": 100.0}}
DENOISERS = DENOISERS_ATTACKED | DENOISERS_SCORED

# The CVAE's runs that answer to these; noise is what its label is taught anyway
CVAES = {
    "original": {"method": "original"},
    "distilled": {"method": "distilled amnesia"},
    "oracle": {"method": "oracle"},
    "replay": {"method": "selective amnesia"},
    "noise for grey": {"method": "distilled amnesia"},
    "distilled, λ = 100": {"method": "distilled amnesia", "lam": 100.0}}
CVAES |= {f"nothing, λ = {lam:g}": {"method": "selective amnesia", "gamma": 0.0, "lam": lam}
          for lam in (0.1, 1.0, 10.0, 100.0)}
