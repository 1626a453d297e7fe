"""What a study is to run: {row of its table: the settings of that row's runs}."""

# What studies 5 and 7 try to bring back: {row: a method's options}
VARIANTS = {"· springs alike, λ = 0.1": {"lam": 0.1, "importance": "identity"}, "· prior for q": {"posterior": "prior"},
            "· reach 0.3": {"reach": 0.3}, "· prior for q, reach 0.3": {"posterior": "prior", "reach": 0.3}}
ATTACKED = {"original": {}, "selective amnesia": {}, "· λ = 0": {"lam": 0.0}, "· λ = 0.1": {"lam": 0.1},
            "· λ = 4": {"lam": 4.0}, "distilled amnesia": {},
            "· distilled, λ = 0": {"method": "distilled amnesia", "lam": 0.0}, "adversarial amnesia": {},
            "label edit": {}, "dampening": {}, "random label": {}, "retrain": {}, "oracle": {}, **VARIANTS}


def grid(method, sets, seeds, **options):
    """The settings of a method's runs: one for each seed and each set of labels to forget."""
    return [{"method": method, "forget": list(labels), "seed": seed, **options} for seed in seeds for labels in sets]


def plan(rows, sets, seeds, **common):
    """{row: settings of its runs} for {row: options}: a row's name is its method's, but one that begins with a dot is a
    method with other options: the one among them, by default Selective Amnesia. common: options of all rows."""
    return {row: grid(**{"method": "selective amnesia" if row.startswith("·") else row, **options, **common},
                      sets=sets, seeds=seeds) for row, options in rows.items()}
