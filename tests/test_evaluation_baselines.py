"""Trivial baselines: which is the best, when a value is above it, what masks that look at no image score."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptor_hf.evaluation import (
    baseline_counts,
    classification_predictions,
    load_predictions,
    mean_mask,
    mean_mask_threshold,
    read_results,
    segmentation_counts,
    segmentation_intervals,
    segmentation_metrics,
    segmentation_predictions,
    write_run,
)
from adaptor_hf.evaluation.baselines import above_baseline, baseline_rows, best_baseline, lower_is_better
from adaptor_hf.evaluation.mask_baselines import TURNS, turned
from adaptor_hf.evaluation.results import RESULTS_FILE
from adaptor_hf.evaluation.scoring import score_predictions
from adaptor_hf.evaluation.verify import verify_run

FIELDS = {
    "system": "s",
    "task": "segmentation",
    "dataset": "d",
    "split_hash": "0",
    "protocol": "frozen",
    "seed": 0,
    "tower_saw_dataset": "no",
}


def lung_like(count: int, seed: int, size: int = 24) -> np.ndarray:
    """Masks (N, size, size) that hardly differ from image to image, as lungs do: two blobs, high up."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), dtype=bool)
    for mask in masks:
        top, bottom = generator.integers(2, 5), generator.integers(14, 17)
        for left in (3, 14):
            mask[top:bottom, left + generator.integers(-1, 2) : left + 7 + generator.integers(-1, 2)] = True
    return masks


def scored(predicted, targets, **options):
    counts = segmentation_counts(predicted, targets) | baseline_counts(predicted, targets, **options)
    names = [str(row) for row in range(len(targets))]
    return segmentation_predictions(names, names, counts, num_resamples=100)


class TestRule:
    def test_the_best_is_the_highest_or_where_lower_is_better_the_lowest(self):
        values = {"a": 0.2, "b": 0.5, "c": math.nan}
        assert best_baseline("dice_pooled", values) == ("b", 0.5)
        for metric in ("brier/edema", "false_alarm_rate", "image_to_text_median_rank", "text_to_image_mean_rank"):
            assert lower_is_better(metric)
            assert best_baseline(metric, values) == ("a", 0.2)
        name, value = best_baseline("auroc", {"c": math.nan})
        assert name == ""
        assert math.isnan(value)

    @pytest.mark.parametrize(
        ("metric", "low", "high", "above"),
        [
            ("auroc", 0.51, 0.9, True),
            ("auroc", 0.5, 0.9, False),
            ("auroc", math.nan, math.nan, False),
            ("brier", 0.1, 0.49, True),
            ("brier", 0.1, 0.5, False),
            ("image_to_text_median_rank", 0.1, 0.4, True),
            ("recall", 0.1, 0.4, True),
            ("specificity@specificity0.90/edema", 0.1, 0.4, True),
        ],
    )
    def test_above_is_an_interval_on_the_better_side(self, metric, low, high, above):
        assert above_baseline(metric, low, high, 0.5) == above

    def test_without_a_baseline_there_is_no_mark(self):
        assert above_baseline("auroc", 0.1, 0.2, math.nan)

    def test_rows_of_runs_with_other_baselines_show_the_span(self):
        def line(value):
            numbers = {"value": value, "ci_lo": value - 0.1, "ci_hi": value + 0.1}
            return {"metric": "dice", "trivial_baseline": value, "trivial_baselines": {"mean": numbers}}

        assert baseline_rows([line(0.5), line(0.5)], ["dice"]) == [("trivial: mean", "", ["0.500 [0.400, 0.600]"])]
        spread = [line(0.5), line(0.25), line(0.3)]
        assert baseline_rows(spread, ["dice"]) == [("trivial: mean", "", ["0.250 to 0.500"])]
        shares = [one | {"fraction": 0.1 + one["trivial_baseline"]} for one in spread]
        assert [share for _, share, _ in baseline_rows(shares, ["dice"])] == ["60 %", "35 %", "40 %"]
        equal = [line(0.5) | {"fraction": share} for share in (0.1, 1.0)]
        assert baseline_rows(equal, ["dice"]) == [("trivial: mean", "", ["0.500 [0.400, 0.600]"])]
        old = {"metric": "dice", "trivial_baseline": 0.5}
        assert baseline_rows([old], ["dice", "auroc"]) == [("trivial baseline", "", ["0.500", ""])]


class TestMasks:
    def test_the_mean_mask_is_the_mean_in_one_pass(self):
        masks = lung_like(7, 0)
        np.testing.assert_allclose(mean_mask(iter(masks)), masks.mean(0))
        with pytest.raises(ValueError, match=r"mask 1 has shape \(4, 5\)"):
            mean_mask([np.zeros((4, 4)), np.zeros((4, 5))])
        with pytest.raises(ValueError, match="no training mask"):
            mean_mask([])

    @pytest.mark.parametrize("metric", ["dice_pooled", "dice_reference", "dice_positive"])
    def test_its_threshold_is_the_best_of_all_levels_on_validation(self, metric):
        mean, validation = mean_mask(lung_like(20, 0)), lung_like(9, 1)
        validation[:2] = False
        threshold = mean_mask_threshold(mean, iter(validation), metric)
        levels = np.linspace(0, mean.max(), 101)[:-1]
        values = [segmentation_metrics([mean > level] * 9, validation)[metric] for level in levels]
        assert threshold in levels
        assert values[list(levels).index(threshold)] == max(values)

    def test_without_any_validation_mask_the_threshold_is_the_half(self):
        assert mean_mask_threshold(np.full((3, 3), 0.4), [np.zeros((3, 3))]) == pytest.approx(0.2)

    def test_baselines_are_scored_as_if_they_were_predicted(self):
        train, targets = lung_like(30, 0), lung_like(12, 1)
        targets[:3] = False
        mean = mean_mask(train)
        threshold = mean_mask_threshold(mean, lung_like(10, 2))
        generator = np.random.default_rng(0)
        predictions = scored(generator.random(targets.shape), targets, mean=mean, mean_threshold=threshold)
        found = {score.metric: score for score in score_predictions(predictions)}
        guesses = {
            "empty mask": np.zeros_like(targets),
            "mean training mask": np.broadcast_to(mean > threshold, targets.shape),
            "full mask": np.ones_like(targets),
        }
        for name, guess in guesses.items():
            alone = segmentation_metrics(guess, targets)
            ends = segmentation_intervals(segmentation_counts(guess, targets), predictions.patients, num_resamples=100)
            for metric, score in found.items():
                if metric != "auroc_any_mask":
                    assert score.trivial_baselines[name]["value"] == pytest.approx(alone[metric]), (name, metric)
                    both = [score.trivial_baselines[name].get(end, np.nan) for end in ("ci_lo", "ci_hi")]
                    assert both == pytest.approx(ends[metric], nan_ok=True)
            assert found["auroc_any_mask"].trivial_baselines[name]["value"] == 0.5
        assert found["dice_pooled"].trivial_name == "mean training mask"
        assert found["dice_pooled"].trivial_baseline > 0.7
        assert found["dice_reference"].trivial_baselines["empty mask"]["value"] == pytest.approx(3 / 12)

    def test_a_system_below_the_mean_mask_is_marked_though_it_beats_the_empty_one(self, tmp_path):
        targets = lung_like(12, 1)
        poor = targets & (np.random.default_rng(0).random(targets.shape) > 0.6)
        lines = write_run(tmp_path, scored(poor, targets, mean=mean_mask(lung_like(30, 0))), FIELDS)
        (dice,) = [line for line in lines if line["metric"] == "dice_pooled"]
        assert dice["ci_lo"] > dice["trivial_baselines"]["empty mask"]["value"] == 0
        assert not above_baseline("dice_pooled", dice["ci_lo"], dice["ci_hi"], dice["trivial_baseline"])
        assert verify_run(tmp_path) == []

    def test_the_mean_mask_is_resized_to_images_of_another_size(self):
        targets = [np.kron(mask, np.ones((2, 3))) > 0 for mask in lung_like(4, 1)]
        counts = baseline_counts(targets, targets, mean_mask(lung_like(30, 0)))
        small = baseline_counts(lung_like(4, 1), lung_like(4, 1), mean_mask(lung_like(30, 0)))
        assert (counts["image_pixels"] == 6 * small["image_pixels"]).all()
        np.testing.assert_allclose(counts["mean_mask_pixels"] / 6, small["mean_mask_pixels"], rtol=0.1)
        np.testing.assert_allclose(counts["mean_mask_intersection"] / 6, small["mean_mask_intersection"], rtol=0.1)

    @settings(deadline=None, max_examples=30)
    @given(number=st.integers(0, 7), seed=st.integers(0, 99))
    def test_turns_are_the_symmetries_of_a_square(self, number, seed):
        mask = np.random.default_rng(seed).random((5, 5)) > 0.5
        moved = turned(mask, number)
        assert moved.sum() == mask.sum()
        named = {
            "a rotation by 180 degrees": mask[::-1, ::-1],
            "a left-right flip": mask[:, ::-1],
            "an upside-down flip": mask[::-1],
            "a transposition (rows and columns swapped)": mask.T,
            "a rotation by 90 degrees counter-clockwise": mask.T[::-1],
            "a rotation by 90 degrees clockwise": mask.T[:, ::-1],
            "a transposition along the other diagonal": mask.T[::-1, ::-1],
        }
        expected = mask if number == 0 else named[TURNS[number - 1]]
        np.testing.assert_array_equal(moved, expected)


class TestVerify:
    def run(self, folder):
        targets = lung_like(12, 1)
        predictions = scored(targets, targets, mean=mean_mask(lung_like(30, 0)))
        write_run(folder, predictions, FIELDS)
        return folder / RESULTS_FILE

    def test_a_baseline_that_was_changed_is_found(self, tmp_path):
        path = self.run(tmp_path)
        assert verify_run(tmp_path) == []
        text = path.read_text()
        (line,) = [line for line in read_results(path).lines if line["metric"] == "dice_pooled"]
        value = line["trivial_baselines"]["mean training mask"]["value"]
        path.write_text(text.replace(f'"value": {value}', '"value": 0.1'))
        assert any("of the baseline 'mean training mask' is 0.1" in found for found in verify_run(tmp_path))
        path.write_text(text.replace('"mean training mask": ', '"other": '))
        assert any("expected empty mask, mean training mask" in found for found in verify_run(tmp_path))

    def test_notes_that_were_changed_are_found(self, tmp_path):
        path = self.run(tmp_path)
        path.write_text(path.read_text().replace('"run_notes": []', '"run_notes": ["All is well."]'))
        assert any("its notes are not those" in found for found in verify_run(tmp_path))

    def test_extra_counts_survive_the_file(self, tmp_path):
        self.run(tmp_path)
        columns = load_predictions(tmp_path).columns
        assert columns["mean_mask_turned_intersection"].shape == (12, 7)
        assert {"image_pixels", "undecided_pixels", "turned_intersection", "mean_mask_pixels"} <= set(columns)

    def test_lines_of_an_older_version_are_still_verified_by_their_one_baseline(self, tmp_path):
        import json

        names = [str(row) for row in range(12)]
        targets = lung_like(12, 1)
        predictions = segmentation_predictions(names, names, segmentation_counts(targets, targets), num_resamples=50)
        write_run(tmp_path, predictions, FIELDS)
        path = tmp_path / RESULTS_FILE
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            for name in ("trivial_baselines", "trivial_name", "run_notes"):
                del line[name]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "SHA256SUMS").unlink()
        assert verify_run(tmp_path) == []


def test_a_classifier_is_compared_with_the_best_of_chance_and_majority():
    labels = np.array([1] * 30 + [0] * 10)
    predictions = classification_predictions(
        map(str, range(40)), [None] * 40, labels, np.linspace(0, 1, 40), problem_type="multi_label_classification",
        train_frequencies=[0.75], num_resamples=50,
    )  # fmt: skip
    found = {score.metric: score for score in score_predictions(predictions)}
    assert found["accuracy"].trivial_name == "majority class"
    assert found["accuracy"].trivial_baseline == 0.75
    assert found["accuracy"].trivial_baselines["chance"]["value"] == pytest.approx(0.75**2 + 0.25**2)
    assert found["auroc"].trivial_baselines == {"chance": {"value": 0.5}}
