"""The converged linear probe: scikit-learn's solution at one C, no gain for an independent tuner, nothing by chance."""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adaptor_hf.heads_adaptor import ClassificationHead
from adaptor_hf.phantom import generate_phantoms
from adaptor_hf.tasks import logistic
from adaptor_hf.tasks.logistic import STRENGTHS, logistic_path
from adaptor_hf.tasks.probe import fit_probe, fold_standardization, macro_auroc, standardization
from adaptor_hf.tasks.protocols import PROTOCOLS, get_protocol

RIGOROUS = PROTOCOLS["rigorous"]


def drawn(rows: int, width: int, labels: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Correlated features of very different deviations, a dead one among them, and labels of 10 to 50 %."""
    generator = np.random.default_rng(seed)
    causes = generator.normal(size=(rows, 10))
    features = causes @ generator.normal(size=(10, width)) + generator.normal(size=(rows, width))
    features = features * np.exp(generator.normal(size=width)) + 3
    features[:, 0] = 0.7
    shares = np.linspace(0.1, 0.5, labels)
    scores = causes[:, :labels] + generator.normal(size=(rows, labels))
    truth = np.stack([column > np.quantile(column, 1 - share) for column, share in zip(scores.T, shares, strict=True)])
    return torch.from_numpy(features.astype(np.float32)), truth.T.astype(np.float32)


def scikit(features: np.ndarray, labels: np.ndarray, strength: float):
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return LogisticRegression(C=strength, tol=1e-8, max_iter=10_000, solver="newton-cholesky").fit(features, labels)


SHAPES = [(60, 200), (300, 40), (150, 150)]
"""More features than rows, fewer, as many."""
FIXED = (1e-4, 1e-2, 1.0, 100.0)


def standardized(features: torch.Tensor, train: slice) -> torch.Tensor:
    from sklearn.preprocessing import StandardScaler

    return torch.from_numpy(StandardScaler().fit(features[train].double()).transform(features.double()))


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_labels_with_unknown_rows_have_scikit_learns_solution(rows, width):
    features, labels = drawn(2 * rows, width, 3, rows + width)
    values, truth = standardized(features, slice(rows)), labels[:rows].copy()
    truth[np.random.default_rng(1).random(truth.shape) < 0.2] = np.nan
    for fit in logistic_path(values[:rows], truth, FIXED, num_logits=3):
        for column in range(3):
            known = ~np.isnan(truth[:, column])
            model = scikit(values[:rows][known].numpy(), truth[known, column], fit.strength)
            largest = np.abs(model.coef_).max()
            np.testing.assert_allclose(fit.weight[column], model.coef_[0], rtol=0, atol=1e-3 * largest)
            np.testing.assert_allclose(fit.bias[column], model.intercept_[0], rtol=0, atol=1e-2)
            ours = (values[rows:] @ fit.weight[column] + fit.bias[column])[:, None].numpy()
            theirs = model.decision_function(values[rows:].numpy())[:, None]
            target = labels[rows:, column : column + 1]
            assert abs(macro_auroc(ours, target, False) - macro_auroc(theirs, target, False)) < 0.001


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_exclusive_classes_have_scikit_learns_multinomial_solution(rows, width):
    features, labels = drawn(2 * rows, width, 3, rows + width)
    values, classes = standardized(features, slice(rows)), labels.argmax(1)
    for fit in logistic_path(values[:rows], classes[:rows], FIXED, num_logits=3):
        model = scikit(values[:rows].numpy(), classes[:rows], fit.strength)
        np.testing.assert_allclose(fit.weight, model.coef_, rtol=0, atol=1e-3 * np.abs(model.coef_).max())
        ours = (values[rows:] @ fit.weight.T + fit.bias).numpy()
        theirs = model.decision_function(values[rows:].numpy())
        np.testing.assert_allclose(
            ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True), atol=0.05
        )
        assert abs(macro_auroc(ours, classes[rows:], True) - macro_auroc(theirs, classes[rows:], True)) < 0.001


@pytest.fixture(scope="module")
def fairness():
    """The benchmark's functions: its tuner is scikit-learn's, and none of ours."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import bench_probe_fairness

    yield bench_probe_fairness
    sys.path.pop(0)


def median_gain(fairness, features: torch.Tensor, labels: np.ndarray, patients: np.ndarray, test_rows: int) -> float:
    """Of the tuner over the probe, in half decades, over ten splits."""
    gains = []
    for seed in range(10):
        rows = fairness.split_by_patient(patients, seed, test_rows)
        assert len(rows["test"]) >= test_rows
        tuned = fairness.tuned_auroc(features, labels, rows, fairness.QUARTERS[::2])
        gains.append(tuned - fairness.probe_auroc(features, labels, rows))
    return float(np.median(gains))


@pytest.mark.slow
def test_a_tuner_of_its_own_gains_under_a_hundredth_on_phantoms(fairness):
    # Small, and the pixels themselves: the benchmark does it with the features of a tower.
    drawn_rows = list(generate_phantoms(1000, image_size=64))
    images = [np.asarray(row["image"].resize((16, 16)), np.float32).reshape(-1) for row in drawn_rows]
    patients = np.unique([row["patient_id"] for row in drawn_rows], return_inverse=True)[1]
    labels = np.array([row["cardiomegaly"] for row in drawn_rows])
    assert median_gain(fairness, torch.from_numpy(np.stack(images)), labels, patients, 500) < 0.01


@pytest.mark.slow
def test_a_tuner_of_its_own_gains_under_a_hundredth_on_radiographs(fairness, realbench):
    import pandas as pd
    from PIL import Image

    rows = pd.read_csv(realbench / "metadata.csv", dtype=str)
    rows = rows[rows["dataset"] == "tbmask"]
    images = [Image.open(realbench / name).convert("L").resize((16, 16)) for name in rows["image"]]
    features = torch.from_numpy(np.stack([np.asarray(image, np.float32).reshape(-1) for image in images]))
    labels = rows["labels"].map(lambda text: json.loads(text)["tuberculosis"]).to_numpy().astype(np.int64)
    patients = rows["patient_id"].astype("category").cat.codes.to_numpy()
    assert median_gain(fairness, features, labels, patients, 150) < 0.01


def fitted(features: torch.Tensor, labels: np.ndarray, recipe=RIGOROUS, seed: int = 0, **options):
    third = 2 * len(features) // 3
    exclusive = labels.ndim == 1
    logits = options.pop("num_logits", int(labels.max()) + 1 if exclusive else labels.shape[1])
    return fit_probe(features[:third], labels[:third], features[third:], labels[third:], recipe, num_logits=logits,
                     exclusive=exclusive, seed=seed, **options)  # fmt: skip


def test_the_seed_changes_nothing_and_the_grid_is_the_same_for_every_tower():
    features, labels = drawn(240, 30, 2, 0)
    first, second = fitted(features, labels, seed=0), fitted(features, labels, seed=1)
    np.testing.assert_array_equal(first.predict(features), second.predict(features))
    assert first.strength == second.strength
    # Another unit of the features is no other system.
    other = fitted(1000 * features - 5, labels)
    assert other.strength == first.strength
    np.testing.assert_allclose(other.predict(1000 * features - 5), first.predict(features), atol=1e-3)


def jackknife_error(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> float:
    """Standard error of the difference of two macro AUROCs on the same rows: another way than DeLong's."""
    from sklearn.metrics import roc_auc_score

    rows = np.arange(len(labels))
    left_out = [
        roc_auc_score(labels[rows != row], first[rows != row]) - roc_auc_score(labels[rows != row], second[rows != row])
        for row in rows
    ]
    return float(np.sqrt((len(rows) - 1) * np.var(left_out)))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_c_has_the_lowest_loss_of_those_that_validation_cannot_tell_from_the_best_ranking(seed):
    from sklearn.metrics import log_loss, roc_auc_score

    features, labels = drawn(240, 30, 2, seed)
    probe, values, known = fitted(features, labels), standardized(features, slice(160)).numpy(), labels[160:]
    scores, areas, losses = {}, {}, {}
    for strength in STRENGTHS:
        models = [scikit(values[:160], labels[:160, column], strength) for column in range(2)]
        scores[strength] = np.stack([model.decision_function(values[160:]) for model in models], axis=1)
        areas[strength] = roc_auc_score(known, scores[strength])
        chances = 1 / (1 + np.exp(-scores[strength]))
        losses[strength] = np.mean([log_loss(known[:, column], chances[:, column]) for column in range(2)])
    assert probe.score == pytest.approx(areas[probe.strength], abs=1e-3)
    best = max(areas, key=areas.get)
    errors = {one: jackknife_error(scores[best], scores[one], known) for one in STRENGTHS}
    # Jackknife and DeLong differ by a few per cent: what lies between 0.9 and 1.1 standard errors may go either way.
    equal = [one for one in STRENGTHS if areas[best] - areas[one] <= 0.9 * errors[one]]
    assert areas[best] - areas[probe.strength] <= 1.1 * errors[probe.strength]
    assert losses[probe.strength] <= min(losses[one] for one in equal) + 1e-6


def test_the_error_of_an_auroc_is_the_jackknifes():
    from adaptor_hf.tasks.selection import auroc_and_influence

    _, labels = drawn(120, 5, 2, 0)
    scores = labels + np.random.default_rng(0).normal(size=labels.shape)
    area, influence = auroc_and_influence(scores, labels, False)
    # The infinitesimal jackknife divides by m, not by m - 1: at 12 positives it is 4 % smaller.
    assert area == pytest.approx(macro_auroc(scores, labels, False))
    assert np.sqrt((influence**2).sum()) == pytest.approx(jackknife_error(scores, 0 * scores, labels), rel=0.08)
    partly = labels.copy()
    partly[:40, 0] = np.nan
    assert auroc_and_influence(scores, partly, False)[0] == pytest.approx(macro_auroc(scores, partly, False))
    classes = labels.argmax(1)
    assert auroc_and_influence(scores, classes, True)[0] == pytest.approx(macro_auroc(scores, classes, True))


def test_an_end_of_the_grid_is_named(caplog):
    features, labels = drawn(240, 30, 2, 0)
    fitted(features, labels)
    assert not caplog.records
    fitted(features, labels, replace(RIGOROUS, strengths=(1e-6, 1e-5, 1e-4)))
    assert "C = 0.0001, an end of the grid (1e-06 to 0.0001)" in caplog.text


def test_a_solution_that_did_not_converge_is_named(caplog, monkeypatch):
    features, labels = drawn(240, 30, 2, 0)
    monkeypatch.setattr(logistic, "_ROUNDS", 1)
    monkeypatch.setattr(logistic, "_STEPS", 3)
    fitted(features, labels)
    assert "did not converge at C = " in caplog.text


def test_a_feature_without_change_in_training_says_nothing_elsewhere():
    features, labels = drawn(240, 30, 1, 0)
    features[:160, 5] = 1e4 * (1 + 1e-7 * torch.randn(160))
    probe = fitted(features, labels)
    before = probe.predict(features)
    features[:, 5], features[:, 0] = -50, 3
    np.testing.assert_array_equal(probe.predict(features), before)
    mean, scale = standardization(features[:160].double())
    assert torch.isinf(scale[[0, 5]]).all()
    assert torch.isfinite(scale[1:5]).all()
    assert torch.isfinite(mean).all()


def test_a_folded_logistic_regression_gives_the_same_on_plain_features():
    features, labels = drawn(240, 30, 2, 0)
    probe = fitted(features, labels)
    head = ClassificationHead(30, 2, None, 0.0).eval()
    head.load_state_dict(fold_standardization(probe).state_dict())
    with torch.no_grad():
        np.testing.assert_allclose(head(features).sigmoid().numpy(), probe.predict(features), atol=1e-5)


def test_classes_and_labels_that_training_lacks():
    features, labels = drawn(240, 30, 2, 0)
    classes = labels.argmax(1) + 1
    chances = fitted(features, classes, num_logits=4).predict(features)
    assert chances.shape == (240, 4)
    assert chances[:, [0, 3]].max() < 1e-9
    np.testing.assert_allclose(chances.sum(1), 1)
    with_constant = np.concatenate([labels, np.ones((240, 1), np.float32), np.full((240, 1), np.nan, np.float32)], 1)
    scores = fitted(features, with_constant).predict(features)
    np.testing.assert_allclose(scores[:, 2], 160.5 / 161)
    np.testing.assert_allclose(scores[:, 3], 0.5)
    np.testing.assert_allclose(scores[:, :2], fitted(features, labels).predict(features), atol=1e-4)


def test_validation_of_one_class_leaves_the_loss_to_choose_by():
    features, labels = drawn(240, 30, 1, 0)
    labels[160:] = 1
    probe = fitted(features, labels)
    assert probe.score < 0
    assert probe.strength in STRENGTHS


def test_heads_with_a_hidden_layer_are_trained_by_gradient():
    features, labels = drawn(120, 10, 1, 0)
    quick = replace(RIGOROUS, max_steps=20)
    for probe in (
        fitted(features, labels, replace(quick, head="mlp2")),
        fitted(features, labels, quick, hidden_size=7),
    ):
        assert probe.strength is None
        assert probe.learning_rate in RIGOROUS.learning_rates
    assert fitted(features, labels).learning_rate is None
    assert get_protocol("rigorous").strengths == STRENGTHS
    assert [name for name, recipe in PROTOCOLS.items() if recipe.strengths] == ["rigorous"]
