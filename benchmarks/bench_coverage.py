"""
How often 95 % intervals hold the truth: simulated scores, masks and ranks of known distributions, few patients.

    python benchmarks/bench_coverage.py > coverage.md

Each cell draws many test sets of `patients`, `positive` of them with the finding, 1 or 3 images each (correlated within
a patient), and counts how often each interval holds the value of the population with this share of positives. Scores
are normal, exponential, rounded, or a mixture in which some patients' findings cannot be seen; decisions are at a fixed
threshold. A second model shares half of the variance and is as good, so that differences are 0. `package` is what
result lines hold, by the same formulas, all sets of a cell at once and under the same resamples; `percentile` the
bootstrap's quantiles.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom, expon, norm

from adaptor_hf.evaluation.draws import regression_residuals
from adaptor_hf.evaluation.formulas import PRIORS, combine, interval_ends

METRICS = ("auroc", "auprc", "recall", "specificity", "accuracy", "f1")
KINDS = dict(zip(METRICS, ("area", "ap", "share", "share", "share", "ratio"), strict=True))
MACRO = 4


@dataclass(frozen=True)
class Family:
    """Scores of positives and negatives as functions of a standard normal one, and where they are called positive."""

    threshold: float
    separation: float
    spread: float = 1.0
    exponential: bool = False
    seen: float = 1.0
    rounded: bool = False


FAMILIES = {
    "normal, 0.74": Family(0.444, 0.74),
    "normal, 1.8": Family(1.08, 1.8),
    "normal, 2.9": Family(1.74, 2.9),
    "normal, unequal spread": Family(1.08, 1.8, 1.5),
    "exponential, 5": Family(2.0, 5.0, exponential=True),
    "exponential, 20": Family(3.0, 20.0, exponential=True),
    "mixture, 70 % seen": Family(1.5, 3.0, seen=0.7),
    "mixture, 95 % seen": Family(1.5, 3.0, seen=0.95),
    "rounded": Family(1.5, 1.8, rounded=True),
}


@dataclass(frozen=True)
class Cell:
    patients: int
    positive: int
    images: int
    family: str = "normal, 1.8"


def cells() -> Iterator[tuple[Cell, int]]:
    """Cells and the share of `--sets` that they draw: large ones are slow, and easy to cover."""
    for patients in (50, 200, 1000):
        for positive in sorted({5, 10, 20, patients // 4, patients // 2} - {12}):
            part = 1 if patients < 1000 and positive <= 25 else 2 if positive <= 20 else 4
            for images in (1, 3):
                for family in FAMILIES:
                    yield Cell(patients, positive, images, family), part


def latent(rng: np.random.Generator, sets: int, patients: int, images: int) -> np.ndarray:
    """`(2, sets, patients, images)` standard normal: models share half of the variance, and images half of each."""

    def noise(*shape: int) -> np.ndarray:
        own = rng.normal(size=(*shape, patients, images))
        return own if images == 1 else np.sqrt(0.5) * (rng.normal(size=(*shape, patients, 1)) + own)

    return np.sqrt(0.5) * (noise(1, sets) + noise(2, sets))


def draw(cell: Cell, rng: np.random.Generator, sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of positives `(2, sets, positive, images)` and negatives."""
    family = FAMILIES[cell.family]
    positive = latent(rng, sets, cell.positive, cell.images)
    negative = latent(rng, sets, cell.patients - cell.positive, cell.images)
    if family.exponential:
        return -family.separation * norm.logsf(positive), -norm.logsf(negative)
    seen = rng.random((1, sets, cell.positive, 1)) < family.seen
    positive = family.spread * positive + family.separation * seen
    return (np.round(positive), np.round(negative)) if family.rounded else (positive, negative)


def truth(cell: Cell) -> dict[str, float]:
    """Values of the population, with the cell's share of positives."""
    family, share = FAMILIES[cell.family], cell.positive / cell.patients

    def above(cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if family.exponential:
            return expon.sf(cut / family.separation), expon.sf(cut)
        seen = family.seen * norm.sf((cut - family.separation) / family.spread)
        return seen + (1 - family.seen) * norm.sf(cut / family.spread), norm.sf(cut)

    cuts = np.linspace(*((0, 400) if family.exponential else (-9, 15)), 2**18)
    if family.rounded:
        cuts = np.arange(-9.5, 15)
    positive, negative = above(cuts)
    of_positive, of_negative = positive[:-1] - positive[1:], negative[:-1] - negative[1:]
    precision = share * positive / np.maximum(share * positive + (1 - share) * negative, 1e-300)
    hit, alarm = (float(part) for part in above(np.float64(family.threshold)))
    found = {
        "auroc": float((of_positive * (1 - negative[:-1] + of_negative / 2)).sum()),
        "auprc": float((of_positive * precision[:-1]).sum()),
        "recall": hit,
        "specificity": 1 - alarm,
        "accuracy": share * hit + (1 - share) * (1 - alarm),
        "f1": 2 * share * hit / (share * hit + (1 - share) * alarm + share),
        "balanced accuracy": (hit + 1 - alarm) / 2,
    }
    return found | {f"mean {name} of {MACRO}": found[name] for name in ("auroc", "auprc", "f1")}


def metrics(positive: np.ndarray, negative: np.ndarray, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    """
    Metrics `(B, S)` of scores `(S, m, k)` and `(S, q, k)` under weights of patients `(B, m + q)`, positives first.

    Written out again, as one product with how many negatives lie between the positives: what is tested is not used.
    """
    sets, m, k = positive.shape
    number, q = m * k, negative.shape[1]
    weights = weights.astype(np.float32)
    of_positive, of_negative = weights[:, :m], weights[:, m:]
    order = np.argsort(positive.reshape(sets, number), axis=1)
    # Sets lie apart on one axis, so that one search serves them all.
    apart = 2000.0 * np.arange(sets)[:, None]
    ranked = (np.take_along_axis(positive.reshape(sets, number), order, 1) + apart).ravel()
    places, own = (negative.reshape(sets, -1) + apart).ravel(), of_positive[:, order // k]
    which, patient = np.repeat(np.arange(sets), q * k), np.tile(np.repeat(np.arange(q), k), sets)

    def above(side: str) -> np.ndarray:
        gap = np.searchsorted(ranked, places, side) - which * number
        counts = np.bincount((patient * sets + which) * (number + 1) + gap, minlength=q * sets * (number + 1))
        between = (of_negative @ counts.reshape(q, -1).astype(np.float32)).reshape(-1, sets, number + 1)
        return np.cumsum(between[:, :, :0:-1], axis=2)[:, :, ::-1]

    at_least = above("right")
    more = above("left") if np.isin(places[: 10 * q], ranked).any() else at_least
    hits = np.cumsum(own[:, :, ::-1], axis=2)[:, :, ::-1]
    first = np.searchsorted(ranked, ranked, "left").reshape(sets, number) - number * np.arange(sets)[:, None]
    hits = np.take_along_axis(hits, np.broadcast_to(first, hits.shape), 2)
    positives, negatives = (k * part.sum(1, dtype=np.float64)[:, None] for part in (of_positive, of_negative))
    called = of_positive.astype(np.float64) @ (positive > threshold).sum(2).T
    alarms = of_negative.astype(np.float64) @ (negative > threshold).sum(2).T
    with np.errstate(invalid="ignore", divide="ignore"):
        lost = (own * (at_least + more)).sum(2, dtype=np.float64)
        precision = own * hits / np.maximum(hits + at_least, 1e-9)
        return {
            "auroc": 1 - lost / 2 / positives / negatives,
            # Single precision must not make 1 a little more or less.
            "auprc": np.round(precision.sum(2, dtype=np.float64) / positives, 6),
            "recall": called / positives,
            "specificity": 1 - alarms / negatives,
            "accuracy": (called + negatives - alarms) / (positives + negatives),
            "f1": 2 * called / (called + alarms + positives),
        }


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`(S,)` of draws `(B, S)`; 0 beside one that does not vary."""
    first, second = first - first.mean(0), second - second.mean(0)
    size = np.sqrt((first**2).sum(0) * (second**2).sum(0))
    return np.where(size > 1e-12, (first * second).sum(0) / np.maximum(size, 1e-12), 0)


def inside(ends: tuple[np.ndarray, np.ndarray], value: float) -> np.ndarray:
    return (ends[0] - 1e-9 <= value) & (value <= ends[1] + 1e-9)


def ends_of(kind: str, point: np.ndarray, drawn: np.ndarray, patients: list[int], images: int) -> tuple:
    low, high = interval_ends(kind, point, drawn.var(0, ddof=1), patients, sum(patients) * images)
    return np.minimum(low, point), np.maximum(high, point)


def mean_ends(points: list, ends: list, draws: list, alike: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """MOVER of a mean of metrics, each `(S,)`, with draws `(B, S)`; lower arms may be taken as fully correlated."""
    count, sizes = len(points), []
    for side in (0, 1):
        arms = [abs(point - both[side]) for point, both in zip(points, ends, strict=True)]
        total = sum(arm**2 for arm in arms)
        for one in range(count):
            for other in range(one):
                shared = 1 if alike and side == 0 else np.maximum(correlations(draws[one], draws[other]), 0)
                total = total + 2 * shared * arms[one] * arms[other]
        sizes.append(np.sqrt(np.maximum(total, 0)) / count)
    return np.mean(points, 0) - sizes[0], np.mean(points, 0) + sizes[1]


def difference_holds_zero(points: tuple, ends: tuple, draws: tuple, smaller: int) -> np.ndarray:
    correlation = correlations(*draws) * smaller / (smaller + PRIORS["mean"])
    (low_1, high_1), (low_2, high_2) = ends
    difference = points[0] - points[1]
    low = difference - combine(points[0] - low_1, high_2 - points[1], correlation)
    high = difference + combine(high_1 - points[0], points[1] - low_2, correlation)
    return inside((low, high), 0.0)


def classification_coverage(cell: Cell, sets: int, resamples: int = 200, seed: int = 0) -> dict[str, dict[str, float]]:
    """Metric to method to the share of test sets whose interval holds the population's value; means and differences."""
    rng = np.random.default_rng([seed, cell.patients, cell.positive, cell.images, list(FAMILIES).index(cell.family)])
    m, q, k = cell.positive, cell.patients - cell.positive, cell.images
    right, threshold, held = truth(cell), FAMILIES[cell.family].threshold, defaultdict(list)
    sizes = {"auroc": [m, q], "specificity": [q], "accuracy": [m + q]}
    block = MACRO * max(1, int(2e6 // max(resamples * m * k, q * (m * k + 1)) // MACRO))
    for start in range(0, sets, block):
        positive, negative = draw(cell, rng, min(block, sets - start))
        weights = rng.multinomial(m + q, np.full(m + q, 1 / (m + q)), resamples)
        weights = weights[(weights[:, :m].sum(1) > 0) & (weights[:, m:].sum(1) > 0)]
        odds = np.log(weights[:, :m].sum(1) / weights[:, m:].sum(1))
        models = []
        for model in range(1 if cell.patients == 1000 else 2):
            scores = positive[model], negative[model], threshold
            points = {name: value[0] for name, value in metrics(*scores, np.ones((1, m + q))).items()}
            raw = metrics(*scores, weights)
            draws = raw | {name: regression_residuals(raw[name], odds) for name in ("auprc", "f1")}
            ends = {name: ends_of(KINDS[name], points[name], draws[name], sizes.get(name, [m]), k) for name in METRICS}
            models.append((points, ends, draws))
        points, ends, draws = models[0]
        for name in METRICS:
            held[name, "package"].append(inside(ends[name], right[name]))
            held[name, "percentile"].append(inside(np.quantile(raw[name], [0.025, 0.975], axis=0), right[name]))
        both = [[part[name] for name in ("recall", "specificity")] for part in models[0]]
        held["balanced accuracy", "package"].append(inside(mean_ends(*both), right["balanced accuracy"]))
        for name in ("auroc", "auprc", "f1"):
            # Sets are independent: each few of them stand for the labels of one.
            of_labels = [slice(label, len(points[name]) // MACRO * MACRO, MACRO) for label in range(MACRO)]
            several = (
                [points[name][label] for label in of_labels],
                [tuple(end[label] for end in ends[name]) for label in of_labels],
                [draws[name][:, label] for label in of_labels],
            )
            mean = f"mean {name} of {MACRO}"
            held[mean, "package"].append(inside(mean_ends(*several, alike=name == "auprc"), right[mean]))
        if len(models) == 2:
            for name in METRICS:
                parts = [[model[part][name] for model in models] for part in range(3)]
                smaller = min(sizes.get(name, [m]))
                held[f"difference of {name}", "package"].append(difference_holds_zero(*parts, smaller))
    return _shares(held)


MEANS = {  # kind, share of zeros, shape of the others; of ranks the share of hits
    "Dice, none missed": ("mean", 0.0, (20, 2)),
    "Dice, a tenth missed": ("mean", 0.1, (8, 3)),
    "Dice, half missed": ("mean", 0.5, (3, 3)),
    "recall@k, 0.2": ("share", 0.8, None),
    "recall@k, 0.5": ("share", 0.5, None),
    "recall@k, 0.8": ("share", 0.2, None),
}


def mean_coverage(
    name: str, patients: int, images: int, sets: int, resamples: int = 200, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Of means over images of Dice, or of hits among the first k: as `classification_coverage`."""
    kind, zeros, shape = MEANS[name]
    rng, held = np.random.default_rng([seed, patients, images, list(MEANS).index(name)]), defaultdict(list)
    levels = norm.cdf(latent(rng, sets, patients, images))
    if shape is None:
        values, right = (levels >= zeros).astype(float), 1 - zeros
    else:
        grid = np.linspace(0, 1, 4097)
        rest = np.interp(np.clip((levels - zeros) / (1 - zeros), 0, 1), beta.cdf(grid, *shape), grid)
        values, right = np.where(levels < zeros, 0.0, rest), (1 - zeros) * shape[0] / sum(shape)
    weights = rng.multinomial(patients, np.full(patients, 1 / patients), resamples) / patients
    of_patient = values.mean(3)
    points, draws = of_patient.mean(2), [weights @ part.T for part in of_patient]
    ends = [ends_of(kind, point, drawn, [patients], images) for point, drawn in zip(points, draws, strict=True)]
    label = name.split(",")[0]
    held[label, "package"].append(inside(ends[0], right))
    held[label, "percentile"].append(inside(np.quantile(draws[0], [0.025, 0.975], axis=0), right))
    held[f"difference of {label}", "package"].append(difference_holds_zero(points, ends, draws, patients))
    return _shares(held)


def _shares(held: dict[tuple[str, str], list[np.ndarray]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for (name, method), parts in held.items():
        found.setdefault(name, {})[method] = float(np.concatenate(parts).mean())
    return found


def exact_wilson(number: int, shares: np.ndarray) -> np.ndarray:
    """Coverage, without simulation, of shares of `number` independent images at true `shares`."""
    hits = np.arange(number + 1)
    low, high = interval_ends("share", hits / number, np.zeros(number + 1), [number], number)
    holds = (low <= shares[:, None]) & (shares[:, None] <= high)
    return (binom.pmf(hits, number, shares[:, None]) * holds).sum(1)


def simulate(sets: int, resamples: int) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """Metric, group of the table, cell in words, and coverage by method."""
    for cell, part in cells():
        group = str(cell.positive) if cell.positive <= 20 else "25 and more"
        where = f"{cell.patients} patients, {cell.positive} positive, {cell.images} image(s) each, {cell.family}"
        for name, methods in classification_coverage(cell, max(MACRO, sets // part), resamples).items():
            yield name, group, where, methods
    for patients in (5, 10, 20, 50, 200):
        for images in (1, 3):
            for name in MEANS:
                where = f"{patients} patients, {images} image(s) each, {name}"
                group = str(patients) if patients <= 20 else "25 and more"
                for label, methods in mean_coverage(name, patients, images, sets, resamples).items():
                    yield label, group, where, methods


def print_tables(rows: list[tuple[str, str, str, dict[str, float]]], sets: int, full: bool) -> None:
    print(f"Coverage in per cent of nominal 95 % intervals; Monte-Carlo error at {sets} sets ±", end=" ")
    print(f"{196 * np.sqrt(0.95 * 0.05 / sets):.1f}, of large cells and means over labels twice that.\n")
    print("| metric | positives | cells | min | median | max | under 93 | over 97 | percentile: min | median | max |")
    print("|---" * 11 + "|")
    for name, group in dict.fromkeys((name, group) for name, group, *_ in rows):
        of = [methods for label, size, _, methods in rows if (label, size) == (name, group)]
        numbers = 100 * np.array([methods["package"] for methods in of])
        old = 100 * np.array([methods.get("percentile", np.nan) for methods in of])
        parts = [f"{f(values):.1f}" for values in (numbers, old) for f in (np.min, np.median, np.max)]
        parts[3:3] = [str((numbers < 93).sum()), str((numbers > 97).sum())]
        print("| " + " | ".join([name, group, str(len(of)), *parts]).replace("nan", "") + " |")
    print("\nWilson's interval of a share, exact, over true shares of 0.50 to 0.99: ", end="")
    exact = {number: 100 * exact_wilson(number, np.arange(0.5, 0.991, 0.001)) for number in (5, 10, 20, 50)}
    print("; ".join(f"{n} images {c.min():.1f} to {c.max():.1f}, mean {c.mean():.1f}" for n, c in exact.items()) + ".")
    if full:
        print("\n| metric | cell | package | percentile |\n|---|---|---|---|")
        for name, _, where, methods in rows:
            old = f"{100 * methods['percentile']:.1f}" if "percentile" in methods else ""
            print(f"| {name} | {where} | {100 * methods['package']:.1f} | {old} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=4000, help="test sets a cell; large cells have fewer")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap; result lines have 1000")
    parser.add_argument("--full", action="store_true", help="also print every cell")
    arguments = parser.parse_args()
    rows = list(simulate(arguments.sets, arguments.resamples))
    print_tables(rows, arguments.sets, arguments.full)


if __name__ == "__main__":
    main()
