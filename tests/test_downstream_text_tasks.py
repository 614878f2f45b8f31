"""Zero-shot, retrieval, few-shot and text understanding, from the script to results."""

import csv
import json

import numpy as np
import pytest

import train_downstream
from adaptor_hf.evaluation import read_results
from adaptor_hf.evaluation.verify import verify_tree
from adaptor_hf.tasks.few_shot import draw_episode, few_shot_scores
from adaptor_hf.tasks.logistic import STRENGTHS
from adaptor_hf.tasks.text_understanding import (
    NUM_UNTRAINED,
    SwapResult,
    swap_laterality,
    swap_negation,
    swap_severity,
    swap_table,
)


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(80)


@pytest.fixture
def run(table, checkpoint, tmp_path, tmp_path_factory):
    def start(task, *more):
        cache = tmp_path_factory.getbasetemp() / "shared-embeddings"
        train_downstream.main(
            ["--task", task, "--model", str(checkpoint), "--table", str(table), "--dataset_name", "phantom-boxes",
             "--output_dir", str(tmp_path), "--cache_dir", str(cache), "--device", "cpu", "--num_resamples", "30",
             *more]
        )  # fmt: skip
        return tmp_path

    return start


LABELS = ("--label_column", "effusion", "edema")


def test_zero_shot_names_classes_without_prompts(run):
    with pytest.raises(ValueError, match="no class effusion"):
        run("zero_shot", *LABELS, "--prompts", "chexpert")


def test_zero_shot_with_prompts_of_a_file(run, tmp_path):
    classes = {
        name: {"positive": [f"{name} seen", f"there is {name}"], "negative": [f"no {name}", "lungs clear"]}
        for name in ("effusion", "edema")
    }
    (tmp_path / "mine.json").write_text(json.dumps({"classes": classes}))
    words = (*LABELS, "--prompts", str(tmp_path / "mine.json"))
    folder = run("zero_shot", *words, "--prompts_per_class", "1", "--seeds", "0", "1", "2")
    lines = read_results(folder / "runs").lines
    assert {line["module"] for line in lines} == {"adaptor", "untrained"}
    assert {line["protocol"] for line in lines} == {"zeroshot"}
    draws = {line["run"]: line["value"] for line in lines if line["metric"] == "auroc" and line["module"] == "adaptor"}
    assert len(draws) == 3
    assert len(set(draws.values())) > 1
    assert all(line["selected_on"] == "none" and line["n_train"] == 0 for line in lines)
    run("zero_shot", *words)
    assert len({line["run"] for line in read_results(folder / "runs").lines}) == 3 * 2 + 2
    assert not any(verify_tree(folder / "runs").values())


def test_retrieval_counts_equal_reports_as_positives(run, table, capsys):
    folder = run("retrieval", "--text_column", "text", "--label_column", "kind", "--controls", "tower")
    lines = {line["metric"]: line for line in read_results(folder / "runs").lines}
    assert lines["mean_recall"]["module"] == "adaptor"
    assert lines["image_to_text_recall@10"]["value"] >= lines["image_to_text_recall@1"]["value"]
    assert lines["image_to_text_precision@1"]["value"] <= 1
    assert 0 < lines["image_to_text_recall@1"]["trivial_baseline"] < 1
    with open(table, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    kinds, of_text = [row["kind"] for row in rows], {row["text"]: row["kind"] for row in reversed(rows)}
    # In a random order every place holds each candidate equally often.
    expected = {
        "text_to_image": np.mean([kinds.count(kind) / len(kinds) for kind in of_text.values()]),
        "image_to_text": np.mean([list(of_text.values()).count(kind) / len(of_text) for kind in kinds]),
    }
    for way, value in expected.items():
        for k in (1, 5):
            assert lines[f"{way}_precision@{k}"]["trivial_baseline"] == pytest.approx(value)
    said = capsys.readouterr().out
    assert "| trivial: chance |" in said
    assert "† Not above its best trivial baseline" in said
    assert not any(verify_tree(folder / "runs").values())


def test_retrieval_without_reports_says_what_to_name(run):
    with pytest.raises(ValueError, match="--text_column"):
        run("retrieval")


def test_few_shot_scores_every_episode_of_every_module(run):
    words = ("--shots", "1", "4", "--episodes", "3", "--controls", "tower")
    folder = run("few_shot", *LABELS, *words)
    lines = read_results(folder / "runs").lines
    runs = {(line["module"], line["recipe"], line["seed"]) for line in lines}
    assert runs == {(m, f"{k} shots", s) for m in ("adaptor", "tower") for k in (1, 4) for s in range(3)}
    assert all(line["C"] in STRENGTHS for line in lines)
    assert not any(verify_tree(folder / "runs").values())


def test_too_many_shots_are_named_and_nothing_is_repeated(run, capsys):
    run("few_shot", *LABELS, "--shots", "500", "--controls", "none")
    assert "500 shots need 500" in capsys.readouterr().out


def test_episodes_are_balanced_and_leave_unknown_rows_out():
    labels = np.array([[0, 1], [1, np.nan], [0, 1], [1, 0], [0, 0], [1, np.nan]], np.float32)
    for seed in range(5):
        for column, rows in enumerate(draw_episode(labels, 2, seed)):
            assert sorted(labels[rows, column]) == [0, 0, 1, 1]
    assert any((draw_episode(labels, 1, 0)[0] != draw_episode(labels, 1, seed)[0]).any() for seed in range(1, 5))
    classes = np.arange(9) % 3
    assert sorted(classes[draw_episode(classes, 2, 0)[0]]) == [0, 0, 1, 1, 2, 2]


def test_few_shot_learns_classes_that_are_apart_and_chooses_c_on_validation():
    generator = np.random.default_rng(0)
    centres = np.eye(3)
    labels = {part: np.arange(30) % 3 for part in ("train", "validation", "test")}
    features = {part: centres[labels[part]] + generator.normal(0, 0.1, (30, 3)) for part in labels}
    scores, strength = few_shot_scores(features, labels, draw_episode(labels["train"], 2, 0))
    assert (scores.argmax(1) == labels["test"]).mean() > 0.9
    np.testing.assert_allclose(scores.sum(1), 1)
    assert strength in STRENGTHS


def test_few_shot_has_scikit_learns_solution_with_one_c_for_all_labels():
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    labels = {part: generator.integers(0, 2, (60, 2)).astype(np.float32) for part in ("train", "validation", "test")}
    features = {part: generator.normal(size=(60, 20)) + 0.8 * truth.repeat(10, 1) for part, truth in labels.items()}
    episode = draw_episode(labels["train"], 4, 0)
    scores, strength = few_shot_scores(features, labels, episode)
    for column, rows in enumerate(episode):
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
        model.fit(features["train"][rows], labels["train"][rows, column])
        np.testing.assert_allclose(scores[:, column], model.predict_proba(features["test"])[:, 1], atol=1e-3)


@pytest.mark.parametrize(
    ("swap", "text", "changed"),
    [
        (swap_negation, "No pleural effusion.", "pleural effusion."),
        (swap_negation, "There is no evidence of pneumothorax.", "There is pneumothorax."),
        (swap_negation, "There is a small left effusion.", "There is no small left effusion."),
        (swap_negation, "The heart is fine.", None),
        (swap_laterality, "Left effusion, right lung clear.", "Right effusion, left lung clear."),
        (swap_laterality, "The leftover.", None),
        (swap_severity, "Small effusion, mild edema.", "Large effusion, severe edema."),
        (swap_severity, "Effusion.", None),
    ],
)
def test_swaps_change_one_meaning(swap, text, changed):
    assert swap(text) == changed


def test_text_understanding_reports_every_system_and_no_report(run, table):
    folder = run("text_understanding", "--text_column", "text")
    text = (folder / "text_understanding.json").read_text()
    results = json.loads(text)["results"]
    assert {result["system"] for result in results} == {"text tower alone", "Adaptor", "Adaptor, untrained"}
    assert {result["swap"] for result in results} == {"negation"}
    assert {len(result["untrained"]) for result in results} == {0, NUM_UNTRAINED}
    for result in results:
        assert -1 <= result["text_cosine"] <= 1
        assert (result["accuracy"] is None) == (result["system"] == "text tower alone")
    assert "effusion" not in text
    # The control of the modules is the first of the untrained ones.
    (control,) = [result for result in results if result["system"] == "Adaptor, untrained"]
    assert control["accuracy"] == control["untrained"][0]


def test_text_understanding_is_beside_untrained_adaptors_whatever_the_controls(run, capsys):
    run("text_understanding", "--text_column", "text", "--controls", "none")
    said = capsys.readouterr().out
    assert f"trivial: {NUM_UNTRAINED} untrained Adaptors" in said
    assert "Chance is 0.5" not in said
    (row,) = [line for line in said.splitlines() if line.startswith("| negation | Adaptor, model")]
    assert row.rstrip(" |").endswith("†")
    assert "† Not above its best trivial baseline" in said


def test_a_swap_is_marked_unless_it_is_above_the_highest_untrained_adaptor_and_the_coin():
    def result(low, untrained):
        return SwapResult("negation", "Adaptor", 9, 9, 0.9, 0.5, low + 0.1, low, low + 0.2, untrained=untrained)

    assert result(0.6, [0.3, 0.55]).above_baseline
    assert not result(0.6, [0.3, 0.77]).above_baseline
    assert not result(0.45, [0.3, 0.4]).above_baseline
    assert result(0.45, [0.3, 0.4]).baseline == 0.5
    table = swap_table([SwapResult("negation", "text tower alone", 9, 9, 0.9, 0.5), result(0.6, [0.3, 0.77])])
    rows = table.splitlines()
    assert rows[2].endswith("| 0.500 |  |")
    assert rows[3].endswith("| 0.700 [0.600, 0.800] † |")
    assert "0.535 (0.300 to 0.770)" in rows[4]
