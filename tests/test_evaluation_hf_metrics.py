"""Metrics of `evaluate`: the same numbers as the functions, over batches and processes, without network."""

import multiprocessing

import numpy as np
import pytest

from adaptor_hf.evaluation import classification_metrics, segmentation_metrics

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def case(rows: int = 31) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    scores = generator.random((rows, 3)) + (labels[:, None] == np.arange(3))
    return scores / scores.sum(1, keepdims=True), labels


def masks() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    targets = generator.random((11, 6, 5)) > 0.7
    targets[:3] = False
    return generator.random(targets.shape), targets


def work(process: int, folder: str, results) -> None:
    from adaptor_hf.evaluation.hf_metrics import ClassificationMetric, SegmentationMetric

    common = {"num_process": 2, "process_id": process, "experiment_id": "pair", "cache_dir": folder}
    scores, labels = case()
    metric = ClassificationMetric(problem_type=SINGLE, num_classes=3, **common)
    for start in range(process * 5, len(labels), 10):
        metric.add_batch(predictions=scores[start : start + 5], references=labels[start : start + 5])
    first = metric.compute()
    predicted, targets = masks()
    metric = SegmentationMetric(**common)
    metric.add_batch(predictions=predicted[process::2], references=targets[process::2])
    results.put((process, first, metric.compute()))


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_all_rows_on_the_first(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=work, args=(process, str(tmp_path), results)) for process in range(2)]
    for process in processes:
        process.start()
    found = {process: rest for process, *rest in (results.get(timeout=240) for _ in processes)}
    for process in processes:
        process.join()
    assert found[1] == [None, None]
    scores, labels = case()
    assert found[0][0] == pytest.approx(dict(classification_metrics(scores, labels, problem_type=SINGLE)))
    assert found[0][1] == pytest.approx(dict(segmentation_metrics(*masks())))


def test_labels_with_unknowns_and_one_logit(tmp_path):
    from adaptor_hf.evaluation.hf_metrics import ClassificationMetric

    scores, _ = case()
    labels = (scores > 0.35).astype(float)
    labels[::4, 1] = np.nan
    metric = ClassificationMetric(problem_type=MULTI, num_classes=3, class_names=list("abc"), cache_dir=str(tmp_path))
    found = metric.compute(predictions=scores, references=labels)
    assert found == pytest.approx(
        dict(classification_metrics(scores, labels, problem_type=MULTI, class_names=list("abc")))
    )
    metric = ClassificationMetric(problem_type=SINGLE, num_classes=1, cache_dir=str(tmp_path))
    found = metric.compute(predictions=scores[:, :1], references=labels[:, :1])
    assert found == pytest.approx(dict(classification_metrics(scores[:, 0], labels[:, 0], problem_type=SINGLE)))


def test_masks_one_at_a_time_and_all_at_once(tmp_path):
    from adaptor_hf.evaluation.hf_metrics import SegmentationMetric

    predicted, targets = masks()
    metric = SegmentationMetric(cache_dir=str(tmp_path))
    for prediction, reference in zip(predicted, targets, strict=True):
        metric.add(prediction=prediction, reference=reference)
    expected = dict(segmentation_metrics(predicted, targets))
    assert metric.compute() == pytest.approx(expected)
    assert SegmentationMetric(cache_dir=str(tmp_path)).compute(predictions=predicted, references=targets) == (
        pytest.approx(expected)
    )


def run_of(kind: str):
    from adaptor_hf.evaluation import (
        classification_predictions,
        retrieval_predictions,
        segmentation_counts,
        segmentation_predictions,
    )

    names = [f"i{row}" for row in range(31)]
    if kind == "classification":
        scores, labels = case()
        return classification_predictions(names, names, labels, scores, problem_type=SINGLE)
    if kind == "segmentation":
        return segmentation_predictions(names[:11], names[:11], segmentation_counts(*masks()))
    ranks = {way: np.random.default_rng(0).integers(1, 31, 31) for way in ("image_to_text", "text_to_image")}
    precisions = {"image_to_text": {5: np.linspace(0, 1, 31)}}
    return retrieval_predictions(names, names, ranks, np.arange(31), precisions=precisions)


KINDS = ("classification", "segmentation", "retrieval")


@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_report_is_from_combined_metrics_and_equals_the_functions(kind, tmp_path, monkeypatch):
    from adaptor_hf.evaluation.hf_metrics import CombinedEvaluations
    from adaptor_hf.evaluation.scoring import score_predictions, values_under_weights

    called = []
    compute = CombinedEvaluations.compute
    monkeypatch.setattr(
        CombinedEvaluations, "compute", lambda self, **rows: called.append(kind) or compute(self, **rows)
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    predictions = run_of(kind)
    expected = values_under_weights(predictions)(np.ones((1, len(predictions))))
    found = {score.metric: score.value for score in score_predictions(predictions)}
    assert called == [kind]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value[0], abs=1e-12, nan_ok=True), name
    assert set(found) - set(expected) == {name for name in found if "median_rank" in name}
    assert list(tmp_path.iterdir()) == []


def gather(process: int, folder: str, results) -> None:
    from adaptor_hf.evaluation.hf_metrics import compute_on_ranks, task_metric, task_rows

    found = []
    for kind in KINDS:
        predictions = run_of(kind)
        metric = task_metric(
            predictions, num_process=2, process_id=process, experiment_id=f"pair-{kind}", cache_dir=folder
        )
        found.append(compute_on_ranks(metric, task_rows(predictions, slice(process, None, 2))))
    results.put((process, found))


def test_a_tasks_metrics_gather_over_ranks(tmp_path):
    from adaptor_hf.evaluation.hf_metrics import score_with_metrics

    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=gather, args=(process, str(tmp_path), results)) for process in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()
    assert found[1] == [None] * 3
    for kind, values in zip(KINDS, found[0], strict=True):
        assert values == pytest.approx(score_with_metrics(run_of(kind))[0], abs=1e-12, nan_ok=True)
