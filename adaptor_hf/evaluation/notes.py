"""
Signs of a broken evaluation that its predictions show, as short sentences: near-constant scores, inverted polarity,
majority predictions, turned masks, soft masks. Each is meant to be silent on healthy data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .mask_baselines import TURNS, baseline_masks
from .predictions import KINDS, Predictions
from .segmentation import image_dice
from .tasks import tasks_with

if TYPE_CHECKING:
    from .scoring import Score

# Fewer rows show nothing.
FEW_ROWS = 10
# Scores that differ by so little relative to their size are equal up to the rounding of a sum in float32; by so few
# steps of float16, if they take few values. Few steps alone are no sign: a strongly regularised head in float64 has
# probabilities within .0004 that rank well.
ROUNDING, HALF_ROUNDING = 64 * float(np.finfo(np.float32).eps), 4 * float(np.finfo(np.float16).eps)
MAJORITY = 0.98
PERFECT_ROWS = 20
# Of images with a mask: how many are better after a turn, and by how much Dice, before it is said.
TURNED_SHARE, TURNED_GAIN, TURNED_DICE, TURNED_ROWS = 0.9, 0.1, 0.05, 5
ODD_MASK_SHARE, ODD_MASK_GAIN, ODD_MASK_DICE, ODD_MASK_ROWS = 0.05, 0.2, 0.5, 3


def run_notes(predictions: Predictions, scores: Sequence[Score]) -> list[str]:
    """
    What a reader of a run's results must be warned of, a sentence each.

    Args:
        predictions ([`Predictions`]): Of the run.
        scores (`Sequence[Score]`): From `score_predictions`.

    Returns:
        `list[str]`: Empty where nothing is conspicuous. No sentence holds an id.
    """
    found = list(predictions.settings.get("data_notes") or ())
    return found + KINDS[predictions.kind].notes(predictions, scores)


def reading_notes(config: Any) -> list[str]:
    """
    A sentence where a model reads other embeddings than in its training, for `data_notes`.

    Args:
        config (`AdaptorConfig`): Of a model that is scored on pooled embeddings.
    """
    # Attention pooling reads tokens wherever it is.
    if not config.trained_on or config.attention_pooling_heads is not None:
        return []
    return [f"Trained on token sequences ({', '.join(config.trained_on)}), scored on pooled embeddings."]


def duplicate_notes(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Systems whose predictions are the same to the last bit."""
    systems: dict[str, set[str]] = {}
    for line in lines:
        if line.get("predictions_sha256"):
            towers = "+".join(str(line[name]) for name in ("vision_tower", "text_tower") if line.get(name))
            systems.setdefault(line["predictions_sha256"], set()).add(f"{line['system']} ({towers})")
    same = {" and ".join(sorted(names)) for names in systems.values() if len(names) > 1}
    reason = "one model was scored twice, or training changed nothing."
    return [f"{names} have identical predictions: {reason}" for names in sorted(same)]


def label_notes(predictions: Predictions, scores: Sequence[Score]) -> list[str]:
    """Of labels and classes: scores that are near-constant, one class for all, AUROC under 0.5 or of exactly 1."""
    return _scores_notes(predictions) + _majority_notes(predictions) + _auroc_notes(predictions, scores)


def _scores_notes(predictions: Predictions) -> list[str]:
    scores = predictions.columns["score"]
    scores = scores[:, None] if scores.ndim == 1 else scores
    if len(scores) < 2:
        return []
    if (scores == scores[:1]).all():
        return ["Every image has the same score."]
    if len(scores) < FEW_ROWS:
        return []
    constant, decided = [], []
    for column, values in enumerate(scores.T):
        distinct, spread = len(np.unique(values)), np.ptp(values) / (np.abs(values).max() or 1)
        if spread <= ROUNDING or (spread <= HALF_ROUNDING and distinct <= len(values) / 2):
            constant.append((column, np.ptp(values), distinct))
        elif distinct <= 2:
            decided.append(column)
    names, found = _class_names(predictions, scores.shape[1]), []
    if constant:
        widest = max(spread for _, spread, _ in constant)
        fewest = min(distinct for *_, distinct in constant)
        found.append(
            f"Near-constant scores{_of(constant, names)}: over all {len(scores)} images they differ by {widest:.2g} at "
            f"most ({fewest} distinct values), no more than rounding does."
        )
    if decided:
        found.append(
            f"The scores{_of([(column,) for column in decided], names)} take two values only: decisions, not scores. "
            "Their AUROC is not the model's."
        )
    return found


def _of(columns: list[tuple], names: list[str]) -> str:
    if len(names) < 2:
        return ""
    if len(columns) == len(names):
        return " of every class"
    return f" of {', '.join(names[column[0]] for column in columns)}"


def _class_names(predictions: Predictions, count: int) -> list[str]:
    return [str(name) for name in predictions.settings.get("class_names") or range(count)]


def _majority_notes(predictions: Predictions) -> list[str]:
    """A class that is predicted for (nearly) all rows, where that scores no more than always saying it."""
    scores, labels = predictions.columns["score"], predictions.columns["target"]
    scores = scores[:, None] if scores.ndim == 1 else scores
    names = _class_names(predictions, scores.shape[1])
    if predictions.settings.get("problem_type") == "single_label_classification" and scores.shape[1] > 1:
        predicted = scores.argmax(1)
        share = np.bincount(predicted, minlength=scores.shape[1]) / len(predicted)
        first = int(share.argmax())
        if share[first] == 1 and len(predicted) > 1:
            return [f"Every image has the same class first ({names[first]})."]
        right, always = (predicted == labels).mean(), (labels == first).mean()
        if len(predicted) >= FEW_ROWS and share[first] >= MAJORITY and right <= always:
            return [
                f"{share[first]:.1%} of the images have the same class first ({names[first]}), and the accuracy, "
                f"{right:.3f}, is not above that of always saying it, {always:.3f}."
            ]
        return []
    thresholds = predictions.settings.get("thresholds")
    if thresholds is None:
        if not predictions.settings.get("probabilities", True):
            return []
        thresholds = 0.5
    labels, sayings = labels.reshape(scores.shape).astype(np.float64), {"negative": [], "positive": []}
    for column, threshold in enumerate(np.broadcast_to(np.asarray(thresholds, np.float64), scores.shape[1])):
        known = ~np.isnan(labels[:, column])
        truth, said = labels[known, column] == 1, scores[known, column] > threshold
        if len(truth) < FEW_ROWS or truth.all() or not truth.any():
            continue
        for word, call in (("negative", ~said), ("positive", said)):
            always = (truth == (word == "positive")).mean()
            if call.mean() >= MAJORITY and (said == truth).mean() <= always:
                sayings[word].append((column,))
    return [
        f"(Nearly) every image is called {word}{_of(columns, names)}: accuracy is not above that of always saying so."
        for word, columns in sayings.items()
        if columns
    ]


def _auroc_notes(predictions: Predictions, scores: Sequence[Score]) -> list[str]:
    areas = [score for score in scores if score.metric.split("/")[0] == "auroc"]
    areas = [score for score in areas if "/" in score.metric] or areas
    found = []
    if inverted := [score for score in areas if score.ci_hi < 0.5]:
        found.append(
            f"AUROC clearly under 0.5{_listed(inverted)}: the scores point the other way. Is the positive class the "
            "one that is meant?"
        )
    labels = predictions.columns["target"]
    if (
        predictions.settings.get("problem_type") == "single_label_classification"
        and predictions.columns["score"].ndim == 2
    ):
        counts = [(labels == column) for column in range(predictions.columns["score"].shape[1])]
        kinds = [(int(one.sum()), int((~one).sum())) for one in counts]
    else:
        columns = labels.reshape(len(labels), -1).T
        kinds = [(int((column == 1).sum()), int((column == 0).sum())) for column in columns]
    perfect = [
        score
        for score, (positives, negatives) in zip(areas, kinds, strict=False)
        if score.value == 1 and min(positives, negatives) >= PERFECT_ROWS
    ]
    if perfect:
        found.append(
            f"AUROC of exactly 1{_listed(perfect)}: rare without a leak. Look for copies of training images in the "
            "test part, and for marks in the images that give the label away."
        )
    return found


def _listed(scores: list[Score]) -> str:
    names = [score.metric.partition("/")[2] for score in scores]
    return f" ({', '.join(names)})" if all(names) else ""


def retrieval_notes(predictions: Predictions, scores: Sequence[Score]) -> list[str]:
    """Of retrieval: embeddings that are nearly equal, ranks that are worse than chance."""
    columns, found = predictions.columns, []
    worst = columns["score"] == columns["candidates"] - columns["target"] + 1
    if len(worst) >= FEW_ROWS and worst.mean() >= 0.9:
        found.append(f"{worst.mean():.0%} of the queries rank last or tie with all: the embeddings are (nearly) equal.")
    else:
        behind = [
            score.metric.removesuffix("_mean_rank").replace("_", " ")
            for score in scores
            if score.metric.endswith("_mean_rank") and score.ci_lo > score.trivial_baseline
        ]
        if behind:
            found.append(f"Ranks are clearly worse than a random order's ({', '.join(behind)}): a sign is turned.")
    return found


def mask_notes(predictions: Predictions, scores: Sequence[Score]) -> list[str]:
    """Of masks: none predicted, turned or inverted ones, soft ones."""
    columns = predictions.columns
    positive = columns["target_pixels"] > 0
    if not columns["predicted_pixels"].any():
        return ["Nothing is predicted in any image: an all-empty mask."]
    if "image_pixels" not in columns or positive.sum() < ODD_MASK_ROWS:
        return []
    counts = {name: values[positive] for name, values in columns.items()}
    trivial = {name: image_dice(guess) for name, guess in baseline_masks(counts).items()}
    return [
        *_misoriented_mask_notes(counts, trivial.get("mean training mask")),
        *_prediction_notes(counts, trivial["full mask"]),
        *_undecided_notes(columns),
    ]


def _dice(shared: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return 2 * shared / np.maximum(first + second, 1)


def _misoriented_mask_notes(counts: Mapping[str, np.ndarray], plain: np.ndarray | None) -> list[str]:
    """True masks that fit the mean training mask far better after a turn."""
    if plain is None:
        return []
    shared = counts["mean_mask_turned_intersection"]
    odd = []
    for number, values in enumerate(shared.T):
        dice = _dice(values, counts["mean_mask_pixels"], counts["target_pixels"])
        rows = (values >= 0) & (dice >= ODD_MASK_DICE) & (dice - plain >= ODD_MASK_GAIN)
        odd.append((int(rows.sum()), float(dice[rows].mean()) if rows.any() else 0.0, rows, TURNS[number]))
    # Lungs are nearly symmetric: of turns that fit as many rows, the one that fits best is named.
    count, dice, rows, turn = max(odd, key=lambda one: (one[0], one[1]))
    if count < max(ODD_MASK_ROWS, ODD_MASK_SHARE * len(plain)):
        return []
    return [
        f"{count} of {len(plain)} true masks fit the mean training mask far better after {turn} (Dice {dice:.2f}, as "
        f"they are {plain[rows].mean():.2f}): are they turned or flipped against the training masks?"
    ]


def _prediction_notes(counts: Mapping[str, np.ndarray], full: np.ndarray) -> list[str]:
    """Predicted masks that fit the true ones far better after a turn, or as their complement."""
    plain = image_dice(counts)
    pixels, predicted, targets = (counts[name] for name in ("image_pixels", "predicted_pixels", "target_pixels"))
    shared = counts["turned_intersection"]
    options = [
        (_dice(values, predicted, targets), TURNS[number])
        for number, values in enumerate(shared.T)
        if (values >= 0).all()
    ]
    complement = _dice(targets - counts["intersection"], pixels - predicted, targets)
    better = [(dice, turn) for dice, turn in options if _fits_better(dice, plain, full)]
    found = []
    if better:
        dice, turn = max(better, key=lambda one: one[0].mean())
        found.append(
            f"The predicted masks fit far better after {turn} (mean Dice {dice.mean():.2f}, as they are "
            f"{plain.mean():.2f}): are predictions or true masks turned or flipped?"
        )
    elif _fits_better(complement, plain, full):
        found.append(
            f"The complement of the predicted masks fits far better (mean Dice {complement.mean():.2f}, as they are "
            f"{plain.mean():.2f}): the polarity of predictions or true masks is inverted."
        )
    return found


def _fits_better(dice: np.ndarray, plain: np.ndarray, full: np.ndarray) -> bool:
    """Better in nearly all images and by a lot, and better than calling every pixel inside."""
    ahead, behind = (dice > plain).sum(), (dice < plain).sum()
    return bool(
        ahead >= TURNED_ROWS
        and ahead >= TURNED_SHARE * (ahead + behind)
        and dice.mean() - plain.mean() >= TURNED_GAIN
        and dice.mean() - full.mean() >= TURNED_DICE
    )


def _undecided_notes(columns: Mapping[str, np.ndarray]) -> list[str]:
    share = columns["undecided_pixels"] / np.maximum(columns["image_pixels"], 1)
    soft = share > 0.5
    if len(soft) < FEW_ROWS or soft.mean() < 0.5:
        return []
    return [
        f"In {int(soft.sum())} of {len(soft)} images more than half of the pixels have probabilities between .25 and "
        ".75: soft masks or ramps, whose Dice hangs on the threshold."
    ]


def tolerated_mask_notes(part: str, found: Mapping[str, int], rows: int) -> list[str]:
    """
    Sentences on masks that were read with reserve, for `data_notes`.

    Args:
        part (`str`): "training", "validation", "test".
        found (`Mapping[str, int]`): Counts by kind, as of `adaptor_hf.data.masks.read_mask`.
        rows (`int`): Masks of the part.
    """
    said = {
        "grey": "have grey pixels beside their two values, such as soft edges: they are cut at half of the maximum.",
        "resized": "have another size than their image: they are brought to it (nearest neighbour).",
        "cut": "have a shape that leaves the image: the part outside is cut off.",
        "inverted": "are inside in most of the image and along its edges: are they inverted?",
    }
    return [f"{found[kind]} of {rows} {part} masks {sentence}" for kind, sentence in said.items() if found.get(kind)]


def notes_of_lines(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The notes of result lines, each once, behind the systems that it is of; then [`duplicate_notes`]."""
    lines = list(lines)
    systems: dict[str, list[str]] = {}
    everywhere = dict.fromkeys(_run_label(line) for line in lines)
    for line in lines:
        single = [line["note"]] if line.get("note") and "/" not in line["metric"] and math.isnan(line["value"]) else []
        for note in [*(line.get("run_notes") or ()), *single]:
            if _run_label(line) not in systems.setdefault(note, []):
                systems[note].append(_run_label(line))
    said = [
        f"{'all runs' if 1 < len(everywhere) == len(names) else '; '.join(names)}: {note}"
        for note, names in systems.items()
    ]
    return said + duplicate_notes(lines)


def _run_label(line: Mapping[str, Any]) -> str:
    parts = [line["system"], line.get("recipe") if line.get("task") in tasks_with(recipe_tells=True) else None]
    parts += [f"{100 * line['fraction']:g} %" if line.get("fraction") else None, line.get("test_set")]
    return ", ".join(part for part in parts if part)


__all__ = [
    "duplicate_notes",
    "label_notes",
    "mask_notes",
    "notes_of_lines",
    "reading_notes",
    "retrieval_notes",
    "run_notes",
    "tolerated_mask_notes",
]
