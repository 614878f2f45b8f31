"""Predictions and result lines: written once, read back, verified, and never lost when a line is damaged."""

import json
import logging
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adaptor_hf.evaluation.notes import run_notes
from adaptor_hf.evaluation.predictions import (
    PREDICTIONS_FILE,
    Predictions,
    classification_predictions,
    load_predictions,
    retrieval_predictions,
    save_predictions,
    segmentation_predictions,
)
from adaptor_hf.evaluation.results import (
    RESULTS_FILE,
    finished_runs,
    read_results,
    read_sound_results,
    run_key,
    write_run,
)
from adaptor_hf.evaluation.retrieval import chance_retrieval, retrieval_intervals, retrieval_metrics
from adaptor_hf.evaluation.scoring import score_predictions
from adaptor_hf.evaluation.segmentation import segmentation_counts, segmentation_metrics
from adaptor_hf.evaluation.verify import verify_run, verify_tree

FIELDS = {
    "system": "Adaptor",
    "task": "classification",
    "dataset": "phantom",
    "split_hash": "0123456789ab",
    "protocol": "linear",
    "seed": 0,
    "tower_saw_dataset": "no",
    "selected_on": "validation",
    "fraction": 0.1,
    "lr": 1e-3,
}


def of_labels(rows: int = 60, seed: int = 0, **settings) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (rows, 2)).astype(float)
    scores = 1 / (1 + np.exp(-labels - generator.normal(size=labels.shape)))
    labels[0, 1] = np.nan
    return classification_predictions(
        [f"i{row}" for row in range(rows)],
        [None if row < 4 else f"p{row // 3}" for row in range(rows)],
        labels,
        scores,
        problem_type="multi_label_classification",
        class_names=["effusion", "edema"],
        columns={"sex": ["F", "M"] * (rows // 2)},
        **{"num_resamples": 50} | settings,
    )


def of_masks(rows: int = 12) -> Predictions:
    generator = np.random.default_rng(0)
    targets = generator.random((rows, 6, 6)) > 0.6
    targets[::3] = False
    counts = segmentation_counts(generator.random(targets.shape), targets)
    return segmentation_predictions(map(str, range(rows)), [None] * rows, counts, num_resamples=50)


def of_retrieval(rows: int = 30) -> tuple[Predictions, dict]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(rows) % 20
    images, texts = (torch.randn(rows, 8, generator=generator) for _ in range(2))
    images, texts = (torch.nn.functional.normalize(part, dim=1) for part in (images, texts[ids]))
    metrics, ranks = retrieval_metrics(images, texts, ids)
    patients = [f"p{row // 2}" for row in range(rows)]
    precisions = {"image_to_text": {5: np.linspace(0, 1, rows)}}
    predictions = retrieval_predictions(
        [f"i{row}" for row in range(rows)], patients, ranks, ids, precisions=precisions, num_resamples=200
    )
    return predictions, {"metrics": metrics, "ranks": ranks, "ids": ids, "patients": np.array(patients)}


class TestPredictions:
    @pytest.mark.parametrize("predictions", [of_labels(), of_masks(), of_retrieval()[0]], ids=lambda p: p.kind)
    def test_they_come_back_exactly(self, predictions, tmp_path):
        save_predictions(predictions, tmp_path)
        back = load_predictions(tmp_path)
        assert back.kind == predictions.kind
        assert back.settings == predictions.settings
        assert set(back.columns) == set(predictions.columns)
        for name, values in predictions.columns.items():
            np.testing.assert_array_equal(back.columns[name], values)
        assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS_FILE]

    def test_any_tool_reads_the_four_columns(self, tmp_path):
        names = pq.read_table(save_predictions(of_labels(), tmp_path)).column_names
        assert {"image_id", "patient_id", "target", "score", "sex"} == set(names)

    def test_an_image_without_patient_is_a_patient_of_its_own(self):
        predictions = of_labels()
        assert len(set(predictions.patients[:4].tolist())) == 4
        assert len(set(predictions.patients.tolist())) == 4 + len(set(predictions.columns["patient_id"][4:]))

    def test_a_damaged_or_foreign_file_is_named(self, tmp_path):
        path = save_predictions(of_labels(), tmp_path)
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
        with pytest.raises(ValueError, match="not written by save_predictions"):
            load_predictions(path)
        path.write_bytes(b"PAR1 cut")
        with pytest.raises(ValueError, match="cannot be read as Parquet"):
            load_predictions(path)
        with pytest.raises(FileNotFoundError):
            load_predictions(tmp_path / "elsewhere")

    def test_columns_of_other_lengths_or_names_with_a_meaning_raise(self):
        with pytest.raises(ValueError, match="same number of rows"):
            classification_predictions(["a"], ["b", "c"], [0], [0.5], problem_type="single_label_classification")
        with pytest.raises(ValueError, match="choose other names"):
            classification_predictions(
                ["a"], ["b"], [0], [0.5], problem_type="single_label_classification", columns={"score": [1]}
            )


class TestRepeatedImages:
    def ids(self, rows=8):
        return [f"i{row}" for row in range(rows - 2)] + ["i0", "i3"]

    @pytest.mark.parametrize("kind", ["classification", "segmentation"])
    def test_an_image_that_is_there_twice_is_refused_with_its_rows_and_without_its_id(self, kind):
        sound = of_masks(8) if kind == "segmentation" else of_labels(8)
        columns = sound.columns | {"image_id": np.array(self.ids(), dtype=object)}
        with pytest.raises(ValueError, match=r"2 of 8 rows repeat .* \(2 images; rows from 0: 0, 6; 3, 7\)") as error:
            Predictions(kind, columns, sound.settings)
        assert "i0" not in str(error.value)

    def test_of_retrieval_an_image_may_have_several_texts_and_no_text_twice(self):
        ranks = {"image_to_text": np.ones(4), "text_to_image": np.ones(3)}
        found = retrieval_predictions(["a", "a", "b", "c"], [None] * 4, ranks, torch.tensor([0, 1, 1, 2]))
        assert len(found) == 7
        with pytest.raises(ValueError, match="1 of 4 rows repeat an image with the same text"):
            retrieval_predictions(["a", "a", "b", "c"], [None] * 4, ranks, torch.tensor([0, 0, 1, 2]))

    def test_a_run_of_someone_else_with_repeated_images_is_told_and_not_used(self, tmp_path):
        write_run(tmp_path / "good", of_labels(), FIELDS)
        write_run(tmp_path / "bad", of_labels(), FIELDS | {"seed": 1})
        path = tmp_path / "bad" / PREDICTIONS_FILE
        table = pq.read_table(path)
        names = table["image_id"].to_pylist()
        column = pa.array([names[1], *names[1:]])
        table = table.set_column(table.column_names.index("image_id"), "image_id", column)
        pq.write_table(table, path)
        found = read_sound_results(tmp_path)
        assert {line["seed"] for line in found.lines} == {0}
        assert "1 of 60 rows repeat" in found.faults[0]
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: 1 of 60 rows repeat"):
            load_predictions(path)
        assert "1 of 60 rows repeat" in verify_tree(tmp_path)[str(tmp_path / "bad")][0]


class TestScores:
    def test_the_trivial_baseline_is_the_constant_predictor(self):
        found = {score.metric: score for score in score_predictions(of_labels(train_frequencies=[0.2, 0.6]))}
        truth = of_labels().columns["target"][:, 0]
        assert found["auroc"].trivial_baseline == 0.5
        assert found["auprc/effusion"].trivial_baseline > truth.mean() + 0.02  # of random scores, at 60 rows
        accuracy = found["accuracy/effusion"].trivial_baselines
        assert accuracy["majority class"]["value"] == pytest.approx(1 - truth.mean())
        assert accuracy["chance"]["value"] == pytest.approx(0.2 * truth.mean() + 0.8 * (1 - truth.mean()))
        assert found["brier/effusion"].trivial_baseline == pytest.approx(((0.2 - truth) ** 2).mean())
        # Always positive is the better guess for F1.
        assert found["f1/effusion"].trivial_baseline == pytest.approx(2 * truth.mean() / (1 + truth.mean()))

    def test_exclusive_classes_are_compared_with_the_majority_of_training(self):
        predictions = classification_predictions(
            list("abcd"), [None] * 4, [0, 0, 1, 2], np.eye(3)[[0, 0, 1, 2]],
            problem_type="single_label_classification", train_frequencies=[0.2, 0.5, 0.3], num_resamples=20,
        )  # fmt: skip
        found = {score.metric: score for score in score_predictions(predictions)}
        assert found["accuracy"].value == 1
        assert found["accuracy"].trivial_baselines["majority class"]["value"] == 0.25
        # Guesses by the frequencies of training hit more here, where the majority is another one.
        assert found["accuracy"].trivial_baselines["chance"]["value"] == pytest.approx(
            0.2 * 0.5 + 0.5 * 0.25 + 0.3 * 0.25
        )
        assert (found["accuracy"].trivial_name, found["accuracy"].trivial_baseline) == ("chance", pytest.approx(0.3))

    def test_sensitivity_at_a_specificity_stands_beside_the_diagonal(self):
        found = {s.metric: s for s in score_predictions(of_labels(operating_points={"0.90": np.array([0.7, 0.8])}))}
        assert found["sensitivity@specificity0.90/edema"].trivial_baseline == pytest.approx(0.1)

    def test_segmentation_stands_beside_the_all_empty_mask(self):
        found = {score.metric: score for score in score_predictions(of_masks())}
        assert found["dice_reference"].trivial_baseline == pytest.approx(4 / 12)
        assert found["dice_positive"].trivial_baseline == 0
        assert found["dice_pooled"].ci_lo < found["dice_pooled"].value < found["dice_pooled"].ci_hi

    def test_retrieval_is_that_of_the_embeddings_with_chance_beside_it(self):
        predictions, known = of_retrieval()
        found = {score.metric: score for score in score_predictions(predictions)}
        for name, value in known["metrics"].items():
            assert found[name].value == pytest.approx(value), name
        for name, value in chance_retrieval(known["ids"]).items():
            assert found[name].trivial_baseline == pytest.approx(value), name
            assert found[name].trivial_name == "chance"
        intervals = retrieval_intervals(known["ranks"], known["ids"], known["patients"])
        for name, interval in intervals.items():
            ends = (found[name].ci_lo, found[name].ci_hi)
            np.testing.assert_allclose(ends, interval, atol=0.5 if "_rank" in name else 0.02, err_msg=name)
        assert found["image_to_text_precision@5"].value == pytest.approx(0.5)
        assert "text_to_image_precision@5" not in found

    def test_chance_of_the_reciprocal_rank_is_what_random_orders_score(self):
        predictions, known = of_retrieval()
        found = {score.metric: score for score in score_predictions(predictions)}
        generator, ids = np.random.default_rng(0), known["ids"].numpy()
        for way, queries, candidates in (("image_to_text", ids, np.arange(20)), ("text_to_image", np.arange(20), ids)):
            draws = []
            for _ in range(400):
                order = generator.permutation(len(candidates))
                draws += [1 / (1 + np.flatnonzero(candidates[order] == query)[0]) for query in queries]
            assert found[f"{way}_mrr"].trivial_baseline == pytest.approx(np.mean(draws), abs=0.01)

    def test_what_the_rows_do_not_determine_has_a_note(self):
        predictions = classification_predictions(
            list("abc"), [None] * 3, [0, 0, 0], [0.1, 0.2, 0.3], problem_type="single_label_classification"
        )
        found = {score.metric: score for score in score_predictions(predictions)}
        assert "no positive among 3" in found["auroc"].note
        assert found["accuracy"].note == ""

    def test_constant_predictions_are_noted(self):
        classes = np.tile([0.2, 0.5, 0.3], (4, 1))
        cases = {
            "same score": classification_predictions(
                list("abcd"), [None] * 4, [0, 1, 1, 0], np.full(4, 0.3), problem_type="single_label_classification"
            ),
            "same class first": classification_predictions(
                list("abcd"), [None] * 4, [0, 1, 2, 0], classes + np.array([[0, 0, 0], [0.1, 0, -0.1]] * 2),
                problem_type="single_label_classification",
            ),
            "all-empty": segmentation_predictions(
                list("ab"), [None] * 2, segmentation_counts(np.zeros((2, 3, 3)), np.eye(3)[None].repeat(2, 0))
            ),
        }  # fmt: skip
        for words, predictions in cases.items():
            assert any(words in note for note in run_notes(predictions, score_predictions(predictions))), words


class TestRuns:
    def test_a_line_has_all_that_tells_where_the_number_comes_from(self, tmp_path):
        write_run(tmp_path / "run", of_labels(), FIELDS)
        (line,) = [line for line in read_results(tmp_path).lines if line["metric"] == "auroc/edema"]
        needed = """system task dataset split_hash protocol head_params input_size fraction n_train n_test seed lr
            selected_on metric value ci_lo ci_hi ci_method trivial_baseline tower_saw_dataset versions"""
        assert set(needed.split()) <= set(line)
        assert line["n_test"] == 60
        assert line["n_patients"] == 23
        assert line["ci_lo"] < line["value"] < line["ci_hi"]
        assert line["ci_method"] == "logit, variance over patients and Hanley-McNeil's"
        assert line["interval_over"] == "patients"

    def test_a_run_is_scored_once(self, tmp_path):
        write_run(tmp_path, of_labels(), FIELDS)
        before = (tmp_path / RESULTS_FILE).read_bytes(), (tmp_path / PREDICTIONS_FILE).read_bytes()
        with pytest.raises(FileExistsError, match="scored once"):
            write_run(tmp_path, of_labels(seed=1), FIELDS)
        assert before == ((tmp_path / RESULTS_FILE).read_bytes(), (tmp_path / PREDICTIONS_FILE).read_bytes())

    def test_the_key_knows_the_run_before_it_starts_and_not_what_came_out(self):
        key = run_key(FIELDS)
        assert key == run_key(FIELDS | {"lr": 0.5, "n_train": 9, "module": None})
        for name, value in {"seed": 1, "fraction": 1.0, "split_hash": "other", "vision_tower": "lite0"}.items():
            assert run_key(FIELDS | {name: value}) != key

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"selected_on": "test"}, "nothing may be chosen there"),
            (
                {"selected_on": "Testing"},
                "selected_on is one of none, train, validation, cross-valid",
            ),
            ({"selected_on": "test-2017"}, "got 'test-2017'"),
            ({"sead": 1}, "Did you mean 'seed'"),
            ({"seed": None}, "needs seed"),
            ({"protocol": "probing"}, "protocol is one of"),
            ({"tower_saw_dataset": True}, "yes, no or unknown"),
        ],
    )
    def test_fields_that_make_no_sense_raise_before_anything_is_written(self, change, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            write_run(tmp_path / "run", of_labels(), FIELDS | change)
        assert not (tmp_path / "run").exists()

    def test_unknown_numbers_are_null_in_the_file_and_nan_when_read(self, tmp_path):
        predictions = classification_predictions(
            list("abc"), [None] * 3, [0, 0, 0], [0.1, 0.2, 0.3], problem_type="single_label_classification"
        )
        write_run(tmp_path, predictions, FIELDS)
        assert '": NaN' not in (tmp_path / RESULTS_FILE).read_text()
        (line,) = [line for line in read_results(tmp_path).lines if line["metric"] == "auroc"]
        assert np.isnan(line["value"])
        assert "no positive" in line["note"]


class TestDamage:
    def test_a_damaged_line_is_reported_with_file_and_line_and_the_others_are_read(self, tmp_path, caplog):
        lines = write_run(tmp_path / "a", of_labels(), FIELDS)
        path = tmp_path / "a" / RESULTS_FILE
        text = path.read_text().splitlines(keepends=True)
        text[2] = text[2][:40] + "\n"
        path.write_text("".join(text))
        with caplog.at_level(logging.WARNING):
            found = read_results(tmp_path)
        assert len(found.lines) == len(lines) - 1
        assert len(found.faults) == 1
        assert f"{path}, line 3: no JSON" in found.faults[0]
        assert found.faults[0] in caplog.text
        assert path.read_text() == "".join(text)
        assert finished_runs(found.lines) == set()

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"[1, 2]", "no JSON object"),
            (b'{"run": "x"}', "no num_metrics, metric"),
            (b"\xff\xfe", "no JSON"),
        ],
    )
    def test_other_damage_is_told_too(self, line, message, tmp_path):
        (tmp_path / RESULTS_FILE).write_bytes(line + b"\n")
        assert message in read_results(tmp_path).faults[0]

    def test_a_value_that_is_no_number_is_told(self, tmp_path):
        write_run(tmp_path, of_labels(), FIELDS)
        path = tmp_path / RESULTS_FILE
        path.write_text(re.sub(r'"value": [\d.]+', '"value": "high"', path.read_text(), count=1))
        assert "line 1: value is 'high'" in read_results(tmp_path).faults[0]

    def test_a_choice_that_is_none_of_the_known_is_told_and_one_on_test_is_read(self, tmp_path):
        write_run(tmp_path, of_labels(), FIELDS)
        path = tmp_path / RESULTS_FILE
        path.write_text(path.read_text().replace('"selected_on": "validation"', '"selected_on": "the test split"', 1))
        found = read_results(tmp_path)
        assert "line 1: selected_on is one of none" in found.faults[0]
        path.write_text(path.read_text().replace('"selected_on": "the test split"', '"selected_on": "test"'))
        assert read_results(tmp_path).lines[0]["selected_on"] == "test"

    def test_two_values_of_one_run_are_told_and_the_first_is_kept(self, tmp_path):
        write_run(tmp_path / "a", of_labels(), FIELDS)
        write_run(tmp_path / "b", of_labels(seed=1), FIELDS)
        found = read_results(tmp_path)
        assert "scored once; the first is kept" in found.faults[0]
        assert {line["folder"] for line in found.lines} == {str(tmp_path / "a")}

    def test_a_part_line_of_a_crash_is_reported_and_the_next_line_is_read(self, tmp_path):
        lines = write_run(tmp_path / "a", of_labels(), FIELDS)
        path, whole = tmp_path / "all.jsonl", (tmp_path / "a" / RESULTS_FILE).read_bytes()
        path.write_bytes(whole[:-30] + b"\n" + whole.splitlines(keepends=True)[-1])
        found = read_results(path)
        assert len(found.lines) == len(lines)
        assert f"line {len(lines)}: no JSON" in found.faults[0]
        assert finished_runs(found.lines) == {run_key(FIELDS)}

    def test_no_file_is_no_empty_result(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=RESULTS_FILE):
            read_results(tmp_path)


class TestVerify:
    @pytest.mark.parametrize("predictions", [of_labels(), of_masks(), of_retrieval()[0]], ids=lambda p: p.kind)
    def test_every_number_follows_from_the_predictions(self, predictions, tmp_path):
        write_run(tmp_path, predictions, FIELDS)
        assert verify_run(tmp_path) == []

    @pytest.mark.parametrize("name", ["value", "ci_lo", "ci_hi", "trivial_baseline", "n_test", "n_patients"])
    def test_a_changed_number_is_found(self, name, tmp_path):
        write_run(tmp_path, of_labels(), FIELDS)
        path = tmp_path / RESULTS_FILE
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[4][name] += 1
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        digest, difference = verify_run(tmp_path)
        assert "results.jsonl is not the file of this run's SHA256SUMS" in digest
        assert f"{lines[4]['metric']}: {name} is" in difference

    def test_a_changed_field_a_missing_line_and_other_predictions_are_found(self, tmp_path):
        lines = write_run(tmp_path, of_labels(), FIELDS)
        path = tmp_path / RESULTS_FILE
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
        assert len(verify_run(tmp_path)) == len(lines) + 1
        path.write_text("".join(path.read_text().replace('"seed": 1', '"seed": 0').splitlines(keepends=True)[1:]))
        assert verify_run(tmp_path)[1:] == [f"run {run_key(FIELDS)}: no line for {lines[0]['metric']}."]
        save_predictions(of_labels(seed=1), tmp_path)
        assert any("SHA-256" in difference for difference in verify_run(tmp_path))

    def test_a_tree_names_the_run_that_cannot_be_read(self, tmp_path):
        write_run(tmp_path / "a", of_labels(), FIELDS)
        write_run(tmp_path / "b", of_labels(), FIELDS | {"seed": 1})
        (tmp_path / "b" / PREDICTIONS_FILE).unlink()
        found = verify_tree(tmp_path)
        assert found[str(tmp_path / "a")] == []
        assert "No predictions at" in found[str(tmp_path / "b")][0]


def test_image_masks_and_metrics_agree_through_the_file(tmp_path):
    generator = np.random.default_rng(0)
    targets = generator.random((9, 5, 5)) > 0.5
    probabilities = generator.random((9, 5, 5))
    predictions = segmentation_predictions(
        map(str, range(9)), [None] * 9, segmentation_counts(probabilities, targets), num_resamples=20
    )
    save_predictions(predictions, tmp_path)
    found = {score.metric: score.value for score in score_predictions(load_predictions(tmp_path))}
    direct = segmentation_metrics(probabilities, targets)
    np.testing.assert_array_equal([found[name] for name in found], [direct[name] for name in found])
