"""Each note on a broken evaluation: a case that has the fault, and healthy data on which nothing is said."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation_baselines import lung_like, scored

from adaptor_hf.evaluation import classification_predictions, mean_mask, retrieval_metrics, retrieval_predictions
from adaptor_hf.evaluation.mask_baselines import TURNS, turned
from adaptor_hf.evaluation.notes import duplicate_notes, notes_of_lines, run_notes, tolerated_mask_notes
from adaptor_hf.evaluation.scoring import score_predictions

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def notes(predictions) -> str:
    return " ".join(run_notes(predictions, score_predictions(predictions)))


def of_scores(scores, labels, problem_type=MULTI, **settings):
    names = [str(row) for row in range(len(labels))]
    return classification_predictions(
        names, [None] * len(names), labels, scores, problem_type=problem_type, num_resamples=100, **settings
    )


def healthy(rows: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (rows, 2))
    return 1 / (1 + np.exp(-1.5 * (labels - 0.5) - generator.normal(size=labels.shape))), labels


class TestScores:
    @settings(deadline=None, max_examples=25)
    @given(seed=st.integers(0, 10_000), rows=st.integers(20, 120))
    def test_a_model_that_has_learned_something_gets_no_note(self, seed, rows):
        scores, labels = healthy(rows, seed)
        scores = np.clip(scores + 0.1 * (labels - 0.5), 0, 1)
        assert notes(of_scores(scores, labels, class_names=["a", "b"])) == ""
        classes = np.random.default_rng(seed).integers(0, 3, rows)
        chances = np.random.default_rng(seed + 1).dirichlet(np.ones(3), rows) + 0.3 * np.eye(3)[classes]
        assert notes(of_scores(chances / chances.sum(1, keepdims=True), classes, SINGLE)) == ""

    def test_scores_that_differ_by_rounding_are_near_constant(self):
        scores, labels = healthy()
        for half in (np.float16, np.float32):
            steps = 0.7 + np.finfo(half).eps * np.random.default_rng(0).integers(-1, 2, scores.shape)
            said = notes(of_scores(steps, labels, class_names=["a", "b"]))
            assert "Near-constant scores of every class: over all 60 images they differ by" in said
            assert "(3 distinct values)" in said
        scores[:, 1] = 0.3 + 1e-6 * scores[:, 1]
        assert "Near-constant scores of b:" in notes(of_scores(scores, labels, class_names=["a", "b"]))
        scores[:, 1] = 0
        assert "Near-constant scores of b: over all 60 images they differ by 0 at most (1 distinct" in notes(
            of_scores(scores, labels, class_names=["a", "b"])
        )
        assert "same score" in notes(of_scores(np.full((60, 2), 0.5), labels))

    def test_rare_but_distinct_probabilities_are_not_near_constant(self):
        _, labels = healthy()
        small = np.random.default_rng(0).uniform(1e-4, 5e-4, labels.shape) + 1e-4 * labels
        assert "Near-constant" not in notes(of_scores(small, labels))
        narrow = np.random.default_rng(0).uniform(-1, 1, labels.shape)
        for scores in (0.5 + 2e-4 * narrow, np.round(0.7 + 0.01 * narrow, 3)):
            assert "Near-constant" not in notes(of_scores(scores, labels))

    def test_decisions_in_place_of_scores_are_said(self):
        scores, labels = healthy()
        assert "take two values only" in notes(of_scores((scores > 0.5).astype(float), labels))

    def test_inverted_polarity_is_said_of_its_class(self):
        scores, labels = healthy(200)
        assert "AUROC clearly under 0.5" not in notes(of_scores(scores, labels))
        scores[:, 0] = 1 - scores[:, 0]
        said = notes(of_scores(scores, labels, class_names=["effusion", "edema"]))
        assert "AUROC clearly under 0.5 (effusion)" in said
        assert "Is the positive class the one that is meant?" in notes(of_scores(scores[:, 0], labels[:, 0]))

    def test_chance_is_no_inverted_polarity(self):
        below = []
        labels = np.arange(200) % 2
        for seed in range(6):
            scores = np.random.default_rng(seed).random(200)
            areas = {score.metric: score.value for score in score_predictions(of_scores(scores, labels))}
            below.append(areas["auroc"] < 0.5)
            assert "clearly under" not in notes(of_scores(scores, labels))
        assert any(below)

    def test_a_majority_class_is_said_where_it_scores_no_more_than_always_saying_it(self):
        classes = np.repeat([0, 1, 2], [40, 10, 10])
        chances = np.tile([0.5, 0.3, 0.2], (60, 1)) + np.random.default_rng(0).normal(0, 0.02, (60, 1)) * [1, -1, 0]
        assert "same class first (0)" in notes(of_scores(chances, classes, SINGLE))
        chances[0] = [0.2, 0.6, 0.2]
        said = notes(of_scores(chances, classes, SINGLE))
        assert "98.3% of the images have the same class first (0)" in said
        assert "0.650, is not above that of always saying it, 0.667" in said

    def test_labels_of_which_nothing_is_called_positive_are_said(self):
        scores, labels = healthy(100)
        scores[:, 1] *= 0.4
        said = notes(of_scores(scores, labels, class_names=["effusion", "edema"]))
        assert "(Nearly) every image is called negative of edema" in said
        assert "effusion" not in said

    def test_a_rare_label_that_is_found_is_no_majority(self):
        labels = np.zeros(200, dtype=int)
        labels[:4] = 1
        scores = np.random.default_rng(0).uniform(0, 0.4, 200) + 0.5 * labels
        scores[0] = 0.2
        assert "every image is called" not in notes(of_scores(scores, labels))

    def test_a_perfect_auroc_is_said_from_twenty_of_each_kind_on(self):
        labels = np.arange(40) % 2
        scores = labels * 0.5 + np.linspace(0, 0.4, 40)
        assert "AUROC of exactly 1" in notes(of_scores(scores, labels))
        assert "AUROC of exactly 1" not in notes(of_scores(scores[:38], labels[:38]))


class TestRetrieval:
    def of(self, images, texts, ids):
        _, ranks = retrieval_metrics(images, texts, ids)
        names = [str(row) for row in range(len(ids))]
        return retrieval_predictions(names, names, ranks, ids, num_resamples=100)

    def pairs(self, noise):
        generator = torch.Generator().manual_seed(0)
        ids = torch.arange(60) % 45
        texts = torch.randn(45, 16, generator=generator)[ids]
        images = texts + noise * torch.randn(60, 16, generator=generator)
        return torch.nn.functional.normalize(images, dim=1), torch.nn.functional.normalize(texts, dim=1), ids

    def test_equal_embeddings_rank_last(self):
        images, _, ids = self.pairs(1)
        equal = images[:1].repeat(60, 1)
        assert "100% of the queries rank last or tie with all" in notes(self.of(equal, equal, ids))

    def test_a_turned_sign_ranks_worse_than_a_random_order(self):
        images, texts, ids = self.pairs(1)
        said = notes(self.of(-images, texts, ids))
        assert "clearly worse than a random order's (image to text, text to image)" in said

    @pytest.mark.parametrize("noise", [0.5, 3, 1000])
    def test_learned_and_random_embeddings_get_no_note(self, noise):
        assert notes(self.of(*self.pairs(noise))) == ""


class TestMasks:
    def predicted(self, targets, seed=0):
        """Most of the truth with wrong pixels."""
        generator = np.random.default_rng(seed)
        noise = generator.uniform(-0.45, 0.45, targets.shape)
        return np.clip(np.where(generator.random(targets.shape) > 0.1, targets, ~targets) * 0.8 + 0.1 + noise / 5, 0, 1)

    def of(self, predicted, targets):
        return scored(predicted, targets, mean=mean_mask(lung_like(30, 0)))

    @pytest.mark.parametrize("seed", range(5))
    def test_good_and_poor_models_get_no_note(self, seed):
        targets = lung_like(20, seed)
        targets[:4] = False
        assert notes(self.of(self.predicted(targets, seed), targets)) == ""
        generator = np.random.default_rng(seed)
        lesions = np.zeros((20, 24, 24), dtype=bool)
        for mask in lesions[5:]:
            top, left = generator.integers(0, 18, 2)
            mask[top : top + 6, left : left + 6] = True
        wrong = np.roll(lesions, 1, axis=0)
        assert notes(scored(wrong, lesions, mean=mean_mask(lesions))) == ""
        assert notes(scored(generator.random(lesions.shape) > 0.9, lesions, mean=mean_mask(lesions))) == ""

    @pytest.mark.parametrize("number", [1, 2, 3, 5, 6, 7])
    def test_turned_predictions_are_said_with_the_turn_that_fits(self, number):
        targets = lung_like(20, 1)
        back = {1: 3, 3: 1}.get(number, number)
        said = notes(self.of(turned(self.predicted(targets), number), targets))
        assert "The predicted masks fit far better after " in said
        assert "true masks fit the mean" not in said
        # These lungs are nearly symmetric: a flip more fits as well.
        mirrored = {1: 5, 2: 6, 3: 7, 5: 1, 6: 2, 7: 3}
        assert any(f"after {TURNS[fits - 1]} (" in said for fits in (back, mirrored[back], mirrored[number]))

    def test_the_turn_is_named_exactly_where_nothing_is_symmetric(self):
        targets = lung_like(20, 1)
        targets[:, :, :12] = False
        targets[:, 18:20, 12:20] = True
        for number in range(1, 8):
            back = {1: 3, 3: 1}.get(number, number)
            said = notes(self.of(turned(self.predicted(targets), number), targets))
            assert f"fit far better after {TURNS[back - 1]} (mean Dice" in said

    def test_a_flip_that_fits_a_little_better_is_not_said(self):
        targets = lung_like(20, 1)
        targets |= targets[:, :, ::-1]
        targets[:, 17:19, 3:8] = True
        flipped = turned(targets, 4)
        dice = 2 * (flipped & targets).sum() / (flipped.sum() + targets.sum())
        assert 0.9 < dice < 1
        assert notes(self.of(flipped, targets)) == ""

    def test_turned_test_masks_are_counted(self):
        targets = lung_like(20, 1)
        targets[:6] = turned(targets[:6], 1)
        said = notes(self.of(self.predicted(targets), targets))
        assert "6 of 20 true masks fit the mean training mask far better after a " in said
        assert "The predicted masks" not in said
        targets = lung_like(20, 1)
        targets[:2] = turned(targets[:2], 1)
        assert notes(self.of(self.predicted(targets), targets)) == ""

    def test_inverted_masks_are_said(self):
        targets = lung_like(20, 1)
        said = notes(self.of(~(self.predicted(targets) > 0.5), targets))
        assert "The complement of the predicted masks fits far better" in said
        assert "polarity" in said

    def test_soft_predictions_are_said(self):
        targets = lung_like(20, 1)
        ramp = np.broadcast_to(np.linspace(0.2, 0.8, 24), targets.shape)
        said = notes(self.of(ramp, targets))
        assert "In 20 of 20 images more than half of the pixels have probabilities between .25 and .75" in said

    def test_an_empty_prediction_is_said(self):
        targets = lung_like(20, 1)
        assert "all-empty mask" in notes(self.of(np.zeros(targets.shape), targets))

    def test_the_notes_on_mask_files_count_rows(self):
        assert tolerated_mask_notes("training", {"grey": 0}, 9) == []
        grey, inverted = tolerated_mask_notes("training", {"grey": 3, "inverted": 1}, 9)
        assert grey.startswith("3 of 9 training masks have grey pixels beside their two values")
        assert inverted.startswith("1 of 9 training masks are inside in most of the image")


class TestLines:
    def line(self, system, digest, **more):
        return {
            "system": system, "vision_tower": "v", "text_tower": None, "predictions_sha256": digest, "metric": "auroc",
            "value": 0.5, "note": "", "run_notes": [], "fraction": None,
        } | more  # fmt: skip

    def test_two_systems_with_the_same_predictions_are_named(self):
        lines = [self.line("Adaptor", "a"), self.line("raw tower", "a"), self.line("untrained", "b")]
        assert duplicate_notes(lines) == [
            "Adaptor (v) and raw tower (v) have identical predictions: one model was scored twice, or training changed "
            "nothing."
        ]
        assert duplicate_notes([self.line("Adaptor", "a", metric="f1"), self.line("Adaptor", "a")]) == []

    def test_a_note_of_several_runs_is_said_once(self):
        lines = [
            self.line("Adaptor", "a", run_notes=["Odd."], fraction=0.1),
            self.line("Adaptor", "b", run_notes=["Odd."], fraction=0.1),
            self.line("raw tower", "c", run_notes=["Odd."]),
            self.line("raw tower", "c", metric="auroc/edema", note="Class 'edema' has none.", value=float("nan")),
        ]
        assert notes_of_lines(lines) == ["all runs: Odd."]
        lines.append(self.line("untrained", "d"))
        assert notes_of_lines(lines) == ["Adaptor, 10 %; raw tower: Odd."]
