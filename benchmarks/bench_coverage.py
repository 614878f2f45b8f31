"""
How often 95 % intervals hold the truth: simulated scores, masks and ranks of known distributions, few patients.

    python benchmarks/bench_coverage.py --replicates 2000 > coverage.md

Each cell draws test sets of `patients`, `positive` of them with the finding, 1 or 3 images each (correlated within a
patient), and counts how often each interval holds the value of the population. `package` is what result lines hold;
`percentile` the bootstrap's quantiles, `BCa` with the jackknife over patients, `logit t` the bootstrap's spread on the
logit scale with Student's t. The Monte-Carlo error (1.96 standard errors) is stated in the head.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from adaptor_hf.evaluation.intervals import Recipe, difference_interval, gather_draws, make_intervals
from adaptor_hf.evaluation.statistics import resampled_weights
from adaptor_hf.evaluation.weighted import weighted_areas

METHODS = ("package", "percentile", "BCa", "logit t")


@dataclass(frozen=True)
class Cell:
    """Test sets of one kind: `separation` of the classes in standard deviations of the negatives, `spread` of the
    positives, scores rounded to `step` (0: not rounded)."""

    patients: int
    positive: int
    images: int
    separation: float
    spread: float = 1.0
    step: float = 0.0


CELLS = [
    *(Cell(n, m, k, d) for n, m in ((50, 5), (50, 25), (200, 5), (200, 20)) for k in (1, 3) for d in (0.74, 1.8, 2.9)),
    *(Cell(1000, m, 1, d) for m in (5, 10, 50) for d in (0.74, 2.9)),
    *(Cell(200, m, 1, 1.8, 1.5) for m in (5, 20)),
    *(Cell(n, 10, 1, 1.8, 1.0, 0.5) for n in (50, 200)),
]


def draw(cell: Cell, rng: np.random.Generator, models: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores `(models, N)`, labels `(N,)` and patients `(N,)`. Models share half of their variance."""
    n, k = cell.patients, cell.images

    def noise(shape: tuple[int, ...]) -> np.ndarray:
        each = rng.normal(size=(*shape, n, k))
        return each if k == 1 else np.sqrt(0.5) * rng.normal(size=(*shape, n, 1)) + np.sqrt(0.5) * each

    scores = noise((models,))
    if models > 1:
        scores = np.sqrt(0.5) * noise(()) + np.sqrt(0.5) * scores
    labels = np.arange(n) < cell.positive
    scores = np.where(labels[:, None], scores * cell.spread + cell.separation, scores)
    if cell.step:
        scores = np.round(scores / cell.step) * cell.step
    return scores.reshape(models, -1), np.repeat(labels, k), np.repeat(np.arange(n), k)


def truth(cell: Cell, threshold: float) -> dict[str, float]:
    """Values of the population, at the cell's prevalence."""
    step = cell.step or 1e-3
    grid = np.arange(-8, 8 + 2 * cell.separation, step)
    negative = norm.sf(grid - step / 2)
    positive = norm.sf((grid - step / 2 - cell.separation) / cell.spread)
    of_negative, of_positive = -np.diff(np.append(negative, 0)), -np.diff(np.append(positive, 0))
    share = cell.positive / cell.patients
    precision = share * positive / np.maximum(share * positive + (1 - share) * negative, 1e-300)
    # A rounded score is above the threshold where the unrounded one is above the middle below the next step.
    cut = threshold if not cell.step else (np.floor(threshold / cell.step) + 0.5) * cell.step
    hit, alarm = norm.sf((cut - cell.separation) / cell.spread), norm.sf(cut)
    return {
        "auroc": float((of_positive * (1 - negative + of_negative / 2)).sum()),
        "auprc": float((of_positive * precision).sum()),
        "recall": float(hit),
        "specificity": float(1 - alarm),
        "balanced_accuracy": float((hit + 1 - alarm) / 2),
        "accuracy": float(share * hit + (1 - share) * (1 - alarm)),
        "f1": float(2 * share * hit / (2 * share * hit + (1 - share) * alarm + share * (1 - hit))),
    }


def scored(scores: np.ndarray, labels: np.ndarray, threshold: float) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Metrics under weights, written out again: the package's own table of them is not what is tested here."""
    called = scores > threshold

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        auroc, auprc = weighted_areas(scores, labels, weights)
        cells = [weights @ (call & label) for call in (called, ~called) for label in (labels, ~labels)]
        hits, alarms, misses, rejections = cells
        with np.errstate(invalid="ignore"):
            recall, specificity = hits / (hits + misses), rejections / (rejections + alarms)
            return {
                "auroc": auroc,
                "auprc": auprc,
                "recall": recall,
                "specificity": specificity,
                "balanced_accuracy": (recall + specificity) / 2,
                "accuracy": (hits + rejections) / weights.sum(1),
                "f1": 2 * hits / (2 * hits + alarms + misses),
            }

    return values


def recipes(labels: np.ndarray) -> dict[str, Recipe]:
    everyone = np.ones(len(labels), dtype=bool)
    return {
        "auroc": Recipe("area", labels, ~labels),
        "auprc": Recipe("ap", labels),
        "recall": Recipe("share", labels),
        "specificity": Recipe("share", ~labels),
        "balanced_accuracy": Recipe("average", parts=("recall", "specificity")),
        "accuracy": Recipe("share", everyone),
        "f1": Recipe("ratio", labels),
    }


def others(value: float, draws: np.ndarray, left_out: np.ndarray, smaller: int) -> dict[str, tuple[float, float]]:
    """The intervals that were not chosen, from draws `(B,)` and values without one patient each `(P,)`."""
    known = draws[~np.isnan(draws)]
    found = {"percentile": tuple(np.quantile(known, [0.025, 0.975]))}
    centred = np.nanmean(left_out) - left_out[~np.isnan(left_out)]
    size = (centred**2).sum()
    below = np.clip(((known < value).mean() + (known <= value).mean()) / 2, 1 / len(known), 1 - 1 / len(known))
    bias, speed = norm.ppf(below), (centred**3).sum() / (6 * size**1.5) if size > 0 else 0.0
    tails = bias + norm.ppf([0.025, 0.975])
    found["BCa"] = tuple(np.quantile(known, norm.cdf(bias + tails / (1 - speed * tails))))
    inside = value if 0 < value < 1 else (value * smaller + 0.5) / (smaller + 1)
    half = t.ppf(0.975, smaller - 1) * known.std(ddof=1) / (inside * (1 - inside))
    logit = np.log(inside / (1 - inside))
    found["logit t"] = (1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit)))
    return found


def classification_coverage(
    cell: Cell, replicates: int, resamples: int, seed: int = 0, compared: bool = True
) -> dict[str, dict[str, float]]:
    """Metric to method to the share of test sets whose interval holds the population's value."""
    rng = np.random.default_rng(seed)
    threshold = 0.6 * cell.separation
    right, held = truth(cell, threshold), {}
    for replicate in range(replicates):
        (scores,), labels, patients = draw(cell, rng)
        values = scored(scores, labels, threshold)
        point = {name: float(value[0]) for name, value in values(np.ones((1, len(labels)))).items()}
        draws = gather_draws(values(weights) for weights in resampled_weights(patients, resamples, replicate))
        intervals = make_intervals(recipes(labels), point, draws, patients)
        jackknife = values((patients[None] != np.arange(cell.patients)[:, None]).astype(float)) if compared else {}
        for name, of_population in right.items():
            ends = {"package": intervals[name]}
            if compared:  # with the jackknife, which is slow for many patients
                smaller = min(cell.positive, cell.patients - cell.positive)
                ends |= others(point[name], draws[name], jackknife[name], smaller)
            for method, (low, high) in ends.items():
                held.setdefault(name, {}).setdefault(method, []).append(low - 1e-9 <= of_population <= high + 1e-9)
    return {name: {method: float(np.mean(got)) for method, got in of.items()} for name, of in held.items()}


def difference_coverage(cell: Cell, replicates: int, resamples: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Paired differences of two equally good models (truth 0): the package's and percentiles of the difference."""
    rng, held = np.random.default_rng(seed), {}
    for replicate in range(replicates):
        both, labels, patients = draw(cell, rng, models=2)
        functions = [scored(scores, labels, 0.6 * cell.separation) for scores in both]
        points = [{k: float(v[0]) for k, v in f(np.ones((1, len(labels)))).items()} for f in functions]
        blocks = list(resampled_weights(patients, resamples, replicate))
        draws = [gather_draws(function(weights) for weights in blocks) for function in functions]
        how = recipes(labels)
        for name in how:
            found = difference_interval((how, how), tuple(points), tuple(draws), name, (patients, patients))
            low, high = np.nanquantile(draws[0][name] - draws[1][name], [0.025, 0.975])
            held.setdefault(name, {}).setdefault("package", []).append(found.ci_lo <= 0 <= found.ci_hi)
            held[name].setdefault("percentile", []).append(low <= 0 <= high)
    return {name: {method: float(np.mean(got)) for method, got in of.items()} for name, of in held.items()}


MEANS = {
    "Dice, a tenth of masks missed": lambda rng, shape, one: (rng.random(one) >= 0.1) * rng.beta(8, 3, shape),
    "Dice, half missed": lambda rng, shape, one: (rng.random(one) >= 0.5) * rng.beta(3, 3, shape),
    "Dice, none missed": lambda rng, shape, one: rng.beta(20, 2, shape),
    "recall@k 0.2": lambda rng, shape, one: (rng.random(shape) < 2 * 0.2 * rng.random(one)).astype(float),
    "recall@k 0.8": lambda rng, shape, one: (rng.random(shape) < 1 - 2 * 0.2 * rng.random(one)).astype(float),
}
MEAN_TRUTH = (0.9 * 8 / 11, 0.25, 20 / 22, 0.2, 0.8)


def mean_coverage(patients: int, images: int, replicates: int, resamples: int) -> Iterator[tuple[str, dict]]:
    """Means over images: of Dice and of hits among the first k, correlated within a patient."""
    rng = np.random.default_rng(0)
    for (name, make), right in zip(MEANS.items(), MEAN_TRUTH, strict=True):
        held: dict[str, list[bool]] = {}
        groups = np.repeat(np.arange(patients), images)
        recipe = Recipe("share" if "recall" in name else "mean", np.ones(len(groups), dtype=bool))
        for replicate in range(replicates):
            values = make(rng, (patients, images), (patients, 1)).reshape(-1)
            blocks = list(resampled_weights(groups, resamples, replicate))
            draws = gather_draws({"mean": weights @ values / weights.sum(1)} for weights in blocks)
            ends = {"package": make_intervals({"mean": recipe}, {"mean": values.mean()}, draws, groups)["mean"]}
            of_patient = values.reshape(patients, images).mean(1)
            ends |= others(
                values.mean(), draws["mean"], (values.mean() * patients - of_patient) / (patients - 1), patients
            )
            for method, (low, high) in ends.items():
                held.setdefault(method, []).append(low - 1e-9 <= right <= high + 1e-9)
        yield name, {method: float(np.mean(got)) for method, got in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000, help="test sets a cell")
    parser.add_argument("--resamples", type=int, default=500, help="of the bootstrap; result lines have 1000")
    arguments = parser.parse_args()
    sizes = arguments.replicates, arguments.resamples
    error = 196 * np.sqrt(0.95 * 0.05 / arguments.replicates)
    print(
        f"Coverage in per cent of nominal 95 % intervals, ± {error:.1f} (Monte Carlo, {arguments.replicates} sets).\n"
    )
    print("| metric | patients | positive | images each | separation | " + " | ".join(METHODS) + " |")
    print("|---" * (5 + len(METHODS)) + "|")

    def row(*head, found: dict[str, float]) -> None:
        cells = [f"{100 * found[method]:.1f}" if method in found else "" for method in METHODS]
        print("| " + " | ".join([*map(str, head), *cells]) + " |", flush=True)

    for cell in CELLS:
        compared = cell.patients <= 200
        kind = f"{cell.separation}" + (", unequal spread" if cell.spread != 1 else "") + (", tied" if cell.step else "")
        for name, found in classification_coverage(cell, *sizes, compared=compared).items():
            row(name, cell.patients, cell.positive, cell.images, kind, found=found)
    for cell in (Cell(50, 5, 1, 1.8), Cell(50, 10, 3, 1.8), Cell(200, 20, 1, 1.8), Cell(200, 20, 1, 2.9)):
        for name, found in difference_coverage(cell, *sizes).items():
            row(f"difference of {name}", cell.patients, cell.positive, cell.images, cell.separation, found=found)
    for patients in (5, 10, 20, 50, 200):
        for images in (1, 3):
            for name, found in mean_coverage(patients, images, *sizes):
                row(name, patients, "", images, "", found=found)


if __name__ == "__main__":
    main()
