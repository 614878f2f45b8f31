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
