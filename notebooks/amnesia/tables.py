"""Tables of a study's records: choose some, take a figure of each, say its mean and spread."""

import operator
import statistics


def select(records, **settings):
    """The records of finished runs whose settings hold these values; None means that a setting must be absent."""
    return [record for record in records if "diverged" not in record["result"]
            and all(record["settings"].get(name) == value for name, value in settings.items())]


def paired(records, others, figure, by=operator.sub):
    """figure(record) minus (or by another operator) that of the one among `others` with the same forgotten labels and seed,
    for each record."""
    def pair(record):
        return str(record["settings"]["forget"]), record["settings"]["seed"]

    base = {pair(other): figure(other) for other in others}
    return [by(figure(record), base[pair(record)]) for record in records if pair(record) in base]


def spread(numbers, digits=3, sign=False):
    """'mean ± sd' of the numbers; without the spread if there is only one, and '–' if there is none."""
    if not numbers:
        return "–"
    text = f"{statistics.mean(numbers):{'+' if sign else ''}z.{digits}f}"                # z: no minus before a zero
    return f"{text} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else text


def markdown(header, rows):
    """A table in markdown."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows))
