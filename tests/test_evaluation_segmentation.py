"""Dice three ways, against plain loops and the published definitions; what an all-empty mask scores."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as sk

from adaptor_hf.evaluation.segmentation import (
    image_dice,
    metrics_of_counts,
    segmentation_counts,
    segmentation_intervals,
    segmentation_metrics,
)


def masks(images: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and masks (N, 12, 10); a third of the masks is empty, some predictions are."""
    generator = np.random.default_rng(seed)
    targets = np.zeros((images, 12, 10), dtype=bool)
    for row in range(images):
        if row % 3:
            top, left = generator.integers(0, 6, 2)
            targets[row, top : top + 5, left : left + 4] = True
    predicted = np.clip(
        0.45 * targets + generator.uniform(0, 0.6, targets.shape) * (generator.random(images) > 0.3)[:, None, None],
        0,
        1,
    )
    return predicted, targets


def reference_dice(probability: np.ndarray, target: np.ndarray) -> float:
    """As GLoRIA, MGCA and Adaptor compute it for one image."""
    p, t = (probability > 0.5).astype(float), (target > 0.5).astype(float)
    if t.sum() == 0:
        return 1.0 if p.sum() == 0 else 0.0
    return 2 * (p * t).sum() / (p + t).sum()


def test_each_dice_and_iou_is_its_definition():
    predicted, targets = masks()
    found = segmentation_metrics(predicted, targets)
    inside, positive = predicted > 0.5, targets.any((1, 2))
    per_image = np.array([reference_dice(*pair) for pair in zip(predicted, targets, strict=True)])
    assert found["dice_reference"] == pytest.approx(per_image.mean())
    assert found["dice_positive"] == pytest.approx(per_image[positive].mean())
    assert found["dice_pooled"] == pytest.approx(sk.f1_score(targets.ravel(), inside.ravel()))
    assert found["iou_pooled"] == pytest.approx(sk.jaccard_score(targets.ravel(), inside.ravel()))
    overlaps = [
        sk.jaccard_score(t.ravel(), p.ravel()) for t, p in zip(targets[positive], inside[positive], strict=True)
    ]
    assert found["iou_positive"] == pytest.approx(np.mean(overlaps))
    assert found["auroc_any_mask"] == pytest.approx(sk.roc_auc_score(positive, predicted.max((1, 2))))
    assert found["sensitivity_any_mask"] == pytest.approx(inside[positive].any((1, 2)).mean())
    assert found["false_alarm_rate"] == pytest.approx(inside[~positive].any((1, 2)).mean())
    np.testing.assert_allclose(image_dice(segmentation_counts(predicted, targets)), per_image)


def test_an_all_empty_prediction_scores_the_share_of_negatives_and_stands_beside_every_value():
    predicted, targets = masks()
    found = segmentation_metrics(np.zeros_like(predicted), targets)
    assert found["dice_reference"] == pytest.approx(1 / 3)
    assert found["dice_positive"] == found["dice_pooled"] == found["iou_pooled"] == 0
    assert found["auroc_any_mask"] == 0.5
    beside = segmentation_metrics(predicted, targets)
    for name in [name for name in found if not name.startswith("all_empty/")]:
        assert beside[f"all_empty/{name}"] == found[name], name


def test_an_all_positive_prediction_fails_on_every_empty_image():
    _, targets = masks()
    found = segmentation_metrics(np.ones_like(targets), targets)
    assert found["false_alarm_rate"] == 1
    per_image = [0 if not target.any() else 2 * target.sum() / (target.sum() + target.size) for target in targets]
    assert found["dice_reference"] == pytest.approx(np.mean(per_image))


def test_a_last_small_batch_does_not_count_more():
    predicted, targets = masks(25)
    batches = [
        segmentation_counts(predicted[start : start + 8], targets[start : start + 8]) for start in (0, 8, 16, 24)
    ]
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert metrics_of_counts(joined) == segmentation_metrics(predicted, targets)
    of_batches = np.mean([metrics_of_counts(batch)["dice_reference"] for batch in batches])
    assert of_batches != pytest.approx(metrics_of_counts(joined)["dice_reference"])


def test_the_interval_of_a_mean_is_wilsons_with_the_variance_between_patients():
    predicted, targets = masks(30)
    counts, patients = segmentation_counts(predicted, targets), np.arange(30) // 2
    low, high = segmentation_intervals(counts, patients, num_resamples=4000, seed=3)["dice_reference"]
    drawn = np.random.default_rng(3).multinomial(15, np.full(15, 1 / 15), size=4000)[:, patients]
    dice = image_dice(counts)
    mean = dice.mean()
    observed = np.var([np.average(dice, weights=rows) for rows in drawn], ddof=1)
    # Of two images a patient that correlate by .75.
    variance = (15 * observed + 2 * (0.75 + 0.25 / 2) * mean * (1 - mean) / 15) / 17
    # Wilson's ends are the roots of (p - mean)^2 = z^2 p (1 - p) / n.
    square = norm.ppf(0.975) ** 2 * variance / (mean * (1 - mean))
    roots = np.sort(np.roots([1 + square, -2 * mean - square, mean**2]).real)
    np.testing.assert_allclose((low, high), roots, atol=1e-9)


def test_without_any_mask_or_without_empty_images_it_says_so():
    predicted, targets = masks()
    positive = targets.any((1, 2))
    none = segmentation_metrics(predicted[~positive], targets[~positive])
    assert "None of 8 images has a mask" in none.notes[0]
    assert np.isnan([none[name] for name in ("dice_positive", "dice_pooled", "iou_pooled", "auroc_any_mask")]).all()
    assert none["dice_reference"] == 1 - none["false_alarm_rate"]
    every = segmentation_metrics(predicted[positive], targets[positive])
    assert "Every image has a mask" in every.notes[0]
    assert np.isnan([every[name] for name in ("auroc_any_mask", "false_alarm_rate")]).all()


def test_images_may_differ_in_size_and_masks_may_be_numbers():
    predicted, targets = masks(6)
    predicted, targets = [predicted[0][:5], *predicted[1:]], [targets[0][:5], *targets[1:]]
    numbers = [(target * 255).astype(np.uint8) for target in targets]
    assert segmentation_metrics(predicted, numbers) == segmentation_metrics(predicted, targets)


@pytest.mark.parametrize(
    ("predicted", "targets", "message"),
    [
        (np.zeros((2, 4, 4)), [np.zeros((4, 4)), np.zeros((8, 8))], r"Image 1.*\(4, 4\).*\(8, 8\)"),
        (np.full((1, 4, 4), -3.0), np.zeros((1, 4, 4)), "sigmoid"),
        (np.full((1, 4, 4), np.nan), np.zeros((1, 4, 4)), "nan"),
        (np.zeros((1, 4, 4), int), np.zeros((1, 4, 4)), "int64"),
        (np.zeros((1, 4, 4)), np.full((1, 4, 4), np.nan), "mask has NaN"),
        (np.zeros((0, 4, 4)), np.zeros((0, 4, 4)), "at least one"),
    ],
)
def test_what_does_not_fit_raises(predicted, targets, message):
    with pytest.raises(ValueError, match=message):
        segmentation_metrics(predicted, targets)
