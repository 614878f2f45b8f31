"""Tasks, metrics and controls are declared once: nothing needs a second list, and a new task is one file."""

import ast
import importlib
import inspect
import json
import math
import sys
from dataclasses import fields
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch
from labelled_images import write_labelled_images
from synthetic import synthetic_config

import adaptor_hf
import train_downstream
from adaptor_hf import AdaptorModel
from adaptor_hf.evaluation import classification_predictions, retrieval_metrics, segmentation_counts
from adaptor_hf.evaluation.baselines import above_baseline, best_baseline, is_one_sided, lower_is_better
from adaptor_hf.evaluation.controls import (
    CONTROLS,
    Control,
    controls_made,
    may_be_recommended,
    saw_pairs,
    simplicity_of,
)
from adaptor_hf.evaluation.intervals import IntervalMethod, make_intervals
from adaptor_hf.evaluation.mask_baselines import baseline_counts
from adaptor_hf.evaluation.metrics import METRICS, Metric, declare_metric, declared_metric, metric_of, parts_of
from adaptor_hf.evaluation.naming import metric_title
from adaptor_hf.evaluation.predictions import (
    KINDS,
    Kind,
    Predictions,
    declare_kind,
    retrieval_predictions,
    segmentation_predictions,
)
from adaptor_hf.evaluation.report import write_report
from adaptor_hf.evaluation.results import read_results, write_run
from adaptor_hf.evaluation.scoring import Score, interval_methods, score_predictions
from adaptor_hf.evaluation.tables import aggregate
from adaptor_hf.evaluation.tasks import TASKS, Task, declare_task
from adaptor_hf.evaluation.verify import verify_tree
from adaptor_hf.hub.results_card import card_results
from adaptor_hf.tasks.arguments import METHOD_OF_BLOCKS, DownstreamArguments, option_parser, parse_arguments
from adaptor_hf.tasks.compare import write_comparison
from adaptor_hf.tasks.controls import load_systems, matched_hidden_size, saved_controls
from adaptor_hf.tasks.finetune import LEARNING_RATES
from adaptor_hf.tasks.prompts import list_prompt_sets
from adaptor_hf.towers import load_vision_tower
from adaptor_hf.training.controls import save_controls
from adaptor_hf.training.systems import System

ROOT = Path(adaptor_hf.__file__).parents[1]

PLANTED = '''
"""A task that nothing else knows of: the brightness of the first feature is its score."""

from pathlib import Path

from adaptor_hf.evaluation import classification_predictions
from adaptor_hf.evaluation.tasks import Task, declare_task
from adaptor_hf.tasks.controls import systems_of
from adaptor_hf.tasks.embedded import load_embedded
from adaptor_hf.tasks.loading import load_adaptor
from adaptor_hf.tasks.overlap import overlap_fields
from adaptor_hf.tasks.provenance import tower_name, tower_saw
from adaptor_hf.tasks.runs import RunList, finish_run
from adaptor_hf.tasks.summary import summarize


def run(arguments, device):
    model = load_adaptor(arguments)
    embedded, found = load_embedded(arguments, model, device), RunList()
    data = embedded.data
    for system in systems_of(arguments, model, device):
        fields = system.fields() | {
            "vision_tower": tower_name(embedded.vision_spec), "task": "first_feature", "dataset": data.name,
            "split_hash": data.split_hash, "protocol": "first", "seed": 0,
            "tower_saw_dataset": tower_saw(embedded.vision_spec, data.name),
        } | overlap_fields(data.seen, system.key)

        def score(system=system):
            scores = system.features(embedded.embeds["test"])[:, :1].double().sigmoid().numpy()
            rows = data.rows("test")
            return classification_predictions(
                rows["image_id"], rows["patient_id"], data.labels["test"], scores, num_resamples=20,
                problem_type="multi_label_classification", class_names=data.class_names,
            )

        finish_run(found, Path(arguments.output_dir), fields, score, {"selected_on": "none"})
    (Path(arguments.output_dir) / "first_feature.txt").write_text("done")
    return summarize(found)


declare_task(Task(
    "first_feature", needs=("labels",), headline=("brier", "auroc"), decides_by="brier", hub_type="image-feature",
    run=run, kind="classification", readouts=("first",), trains=False, own_options=("image_size",),
    files=("first_feature.txt",),
))
'''


@pytest.fixture
def undeclared():
    """What a test declares is forgotten after it."""
    before = dict(TASKS), dict(METRICS), dict(KINDS)
    yield
    for known, old in zip((TASKS, METRICS, KINDS), before, strict=True):
        known.clear()
        known.update(old)


@pytest.fixture
def planted(undeclared, tmp_path, monkeypatch):
    (tmp_path / "planted_task.py").write_text(PLANTED, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("planted_task")
    del sys.modules["planted_task"]


def test_a_task_in_one_new_file_is_in_the_option_tables_cards_comparisons_and_manifests(
    planted, tiny_dinov2, tmp_path, capsys
):
    torch.manual_seed(3)
    spec = load_vision_tower(str(tiny_dinov2)).spec
    AdaptorModel(synthetic_config(vision_hidden_size=32, vision_tower=spec)).save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--table", str(write_labelled_images(tmp_path / "set", 60)),
             "--label_column", "effusion", "--dataset_name", "drawn", "--device", "cpu"]  # fmt: skip
    out = tmp_path / "out"
    train_downstream.main(["--task", "first_feature", *words, "--output_dir", str(out), "--compare"])
    said = capsys.readouterr().out
    # The terminal's table has the headline metrics in their order, and the controls.
    assert "| seeds | brier | auroc |" in said
    assert "raw tower" in said
    assert "trivial: class frequencies" in said
    assert "# brier of first_feature on drawn" in (out / "comparison.md").read_text(encoding="utf-8")
    lines = read_results(out / "runs").lines
    assert {line["protocol"] for line in lines} == {"first"}
    write_report(out / "runs", tmp_path / "report", figures=False)
    (latex,) = (tmp_path / "report/tables").glob("metrics_*first-feature*.tex")
    assert " & brier & AUROC \\\\" in latex.read_text(encoding="utf-8")
    assert {result.task_type for result in card_results(aggregate(lines))} == {"image-feature"}
    assert "first_feature.txt" in json.loads((out / "manifest.json").read_text(encoding="utf-8"))["files"]
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    assert "first_feature" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--image_size is for --task first_feature, not retrieval"):
        parse_arguments(["--task", "retrieval", *words, "--image_size", "32"])


class MeanError(evaluate.Metric):
    """Mean of |prediction - reference|."""

    def _info(self):
        number = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="mean error", citation="", features=number)

    def _compute(self, predictions, references):
        return {"age_error": float(np.abs(np.subtract(predictions, references)).mean())}


def age_errors(predictions):
    return np.abs(predictions.columns["score"] - predictions.columns["target"])


def age_values(predictions):
    return lambda weights: {"age_error": weights @ age_errors(predictions) / weights.sum(1)}


def age_intervals(predictions):
    return {"age_error": IntervalMethod("mean", np.ones(len(predictions), bool), scale=100.0)}


def age_scores(predictions, values, notes):
    draws = {"age_error": np.full(20, values["age_error"]) + np.linspace(-1, 1, 20)}
    found = make_intervals(age_intervals(predictions), values, draws, predictions.patients)
    target = predictions.columns["target"]
    trivial = {"mean age": {"value": float(np.abs(target - target.mean()).mean())}}
    return [Score("age_error", values["age_error"], *found["age_error"], 0.0, "mean age", trivial)]


def test_a_kind_of_predictions_with_a_metric_of_its_own_is_declared_in_one_place(undeclared, tmp_path):
    declare_metric(Metric("age_error", False, "mean age", "mean", "error in years"))
    declare_kind(
        Kind(
            "ages",
            columns=("years",),
            metrics=lambda predictions, **options: [MeanError(**options)],
            rows=lambda predictions, rows: {
                "predictions": predictions.columns["score"][rows],
                "references": predictions.columns["target"][rows],
            },
            score=age_scores,
            values=age_values,
            intervals=age_intervals,
            notes=lambda predictions, scores: ["Ages are whole years."],
        )
    )
    declare_task(
        Task("age", ("labels",), ("age_error",), "age_error", "regression", len, "ages", ("line",), trains=True)
    )
    names, years = [str(row) for row in range(30)], np.arange(30, 60)
    columns = {"image_id": np.array(names, object), "patient_id": np.array(names, object), "years": years}
    with pytest.raises(ValueError, match="ages need the columns years"):
        Predictions("ages", {"image_id": names, "patient_id": names, "target": years, "score": years})
    for system, width in (("Adaptor", 1.0), ("raw tower", 8.0)):
        scores = years + width * np.random.default_rng(0).random(len(years))
        predictions = Predictions("ages", columns | {"target": years.astype(float), "score": scores})
        fields = {"system": system, "module": {"Adaptor": "adaptor"}.get(system, "tower"), "task": "age", "seed": 0,
                  "dataset": "drawn", "split_hash": "0", "protocol": "line", "tower_saw_dataset": "no",
                  "vision_tower": "t"}  # fmt: skip
        lines = write_run(tmp_path / "runs" / system, predictions, fields)
        assert [line["value"] for line in lines] == [pytest.approx(np.abs(scores - years).mean())]
        assert lines[0]["run_notes"] == ["Ages are whole years."]
    assert not any(verify_tree(tmp_path / "runs").values())
    page = write_comparison(tmp_path, task="age", fraction=None)
    assert page.startswith("# age_error of age on drawn")
    # The lower error is the better one.
    assert "**Take Adaptor on t" in page


def test_without_its_file_the_task_is_unknown(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--task", "first_feature"])
    assert "invalid choice: 'first_feature'" in capsys.readouterr().err


class TestMetric:
    @pytest.mark.parametrize(
        "stated",
        [
            {},
            {"higher_is_better": True},
            {"higher_is_better": True, "trivial_baseline": "chance"},
            {"trivial_baseline": "chance", "interval": "share"},
            {"higher_is_better": None, "trivial_baseline": "chance", "interval": "share"},
            {"higher_is_better": True, "trivial_baseline": None, "interval": "share"},
            {"higher_is_better": True, "trivial_baseline": "", "interval": "share"},
            {"higher_is_better": True, "trivial_baseline": "chance", "interval": "percentiles"},
        ],
    )
    def test_direction_baseline_and_interval_must_be_stated(self, stated):
        with pytest.raises((TypeError, ValueError)):
            Metric("distance", **stated)

    def test_a_planted_metric_is_known_by_its_declaration_alone(self, undeclared):
        values = (0.2, 0.3, 0.5)
        assert not lower_is_better("hausdorff/lung")
        assert not above_baseline("hausdorff/lung", *values)
        declare_metric(Metric("hausdorff", False, "mean training mask", "mean", "Hausdorff distance"))
        assert lower_is_better("hausdorff/lung")
        assert above_baseline("hausdorff/lung", *values)
        assert metric_title("hausdorff/lung") == "Hausdorff distance, lung"
        assert not is_one_sided("hausdorff")
        declare_task(Task("borders", ("masks",), ("hausdorff",), "hausdorff", None, len, None, (), trains=True))

    def test_one_of_somebody_elses_lines_goes_by_the_end_of_its_name(self):
        lower = [name for name, metric in METRICS.items() if not metric.higher_is_better]
        assert {"brier", "ece", "median_rank"} <= set(lower)
        for name in METRICS:
            assert lower_is_better(f"macro_{name}/edema") == (name in lower), name
        assert not lower_is_better("auroc/brier")
        assert best_baseline("macro_brier", {"a": 0.2, "b": 0.5}) == ("a", 0.2)

    def test_another_one_of_the_same_name_is_refused(self, undeclared):
        declare_metric(METRICS["brier"])
        with pytest.raises(ValueError, match="'brier' already"):
            declare_metric(Metric("brier", True, "chance", "mean"))
        with pytest.raises(ValueError, match="'retrieval' already"):
            declare_task(Task("retrieval", ("reports",), (), None, None, len, None, (), trains=False))

    @pytest.mark.parametrize(
        ("name", "parts", "title"),
        [
            ("auroc", ("", "auroc", "", ""), "AUROC"),
            ("balanced_accuracy/edema", ("", "balanced_accuracy", "", "edema"), "balanced accuracy, edema"),
            ("image_to_text_recall@10", ("image_to_text", "recall@", "10", ""), "image to text recall@10"),
            ("text_to_image_mrr", ("text_to_image", "mrr", "", ""), "text to image MRR"),
            ("sensitivity@specificity0.90/a/b", ("", "sensitivity@", "specificity0.90", "a/b"),
             "sensitivity@specificity0.90, a/b"),
            ("somebody_elses", ("", "somebody_elses", "", ""), "somebody elses"),
        ],
    )  # fmt: skip
    def test_names_in_result_lines(self, name, parts, title):
        assert parts_of(name) == parts
        assert metric_title(name) == title
        assert (metric_of(name) is None) == name.startswith("somebody")

    def test_what_is_computed_and_not_declared_is_refused(self, undeclared):
        with pytest.raises(ValueError, match="'hausdorff' is declared"):
            declared_metric("hausdorff")
        del METRICS["brier"]
        with pytest.raises(ValueError, match="'brier' is declared"):
            score_predictions(scored_labels(0.5))

    def test_a_metric_whose_trivial_baseline_is_not_computed_is_refused(self, undeclared):
        METRICS["dice_pooled"] = Metric("dice_pooled", True, "a coin", "mean")
        with pytest.raises(ValueError, match="dice_pooled needs the trivial baseline 'a coin'"):
            score_predictions(scored_masks(0.5))


def scored_labels(quality: float, exclusive: bool = False):
    """Predictions of 60 images whose scores follow the labels the more, the higher the quality in [0, 1]."""
    generator = np.random.default_rng(0)
    names, classes = [str(row) for row in range(60)], 3
    labels = np.arange(60) % classes if exclusive else (generator.random((60, classes)) < 0.4).astype(float)
    truth = np.eye(classes)[labels] if exclusive else labels
    scores = quality * truth + (1 - quality) * generator.random((60, classes))
    settings = {"thresholds": 0.5, "operating_points": {"0.90": [0.5] * classes}}
    if exclusive:
        scores, settings = scores / scores.sum(1, keepdims=True), {}
    kind = "single_label_classification" if exclusive else "multi_label_classification"
    return classification_predictions(
        names, names, labels, np.clip(scores, 0, 1), problem_type=kind, class_names=["a", "b", "c"], num_resamples=50,
        **settings,
    )  # fmt: skip


def scored_masks(quality: float):
    generator = np.random.default_rng(0)
    target = np.zeros((40, 8, 8), bool)
    target[::2, 2:6, 2:6] = True
    found = np.where(generator.random(target.shape) < quality, target, generator.random(target.shape) < 0.5)
    found[: int(20 * (1 - quality))] = False
    counts = segmentation_counts(found, target) | baseline_counts(found.astype(float), target, target.mean(0), 0.3)
    names = [str(row) for row in range(len(target))]
    return segmentation_predictions(names, names, counts, num_resamples=50)


def scored_pairs(quality: float):
    torch.manual_seed(0)
    text, noise = torch.randn(30, 16), torch.randn(30, 16)
    image = torch.nn.functional.normalize(quality * text + (1 - quality) * noise, dim=1)
    ids, names = torch.arange(30), [str(row) for row in range(30)]
    _, ranks = retrieval_metrics(image, torch.nn.functional.normalize(text, dim=1), ids)
    precisions = {way: {5: 1 / np.asarray(rank, float)} for way, rank in ranks.items()}
    same = {way: np.ones(30, int) for way in ranks}
    return retrieval_predictions(
        names, names, ranks, ids, precisions=precisions, same_class=same, num_resamples=50
    )  # fmt: skip


MADE = {
    "labels": scored_labels,
    "classes": lambda quality: scored_labels(quality, exclusive=True),
    "masks": scored_masks,
    "pairs": scored_pairs,
}


@pytest.mark.parametrize("made", MADE)
def test_each_computed_metric_is_declared_with_its_direction_baseline_and_interval(made):
    poor, good = MADE[made](0.3), MADE[made](1.0)
    before, after = ({score.metric: score for score in score_predictions(one)} for one in (poor, good))
    assert before.keys() == after.keys()
    for name, score in before.items():
        declared = declared_metric(name)
        # What is perfect is better than what is poor, whichever way a metric goes.
        assert score.value != after[name].value, name
        assert (after[name].value > score.value) == declared.higher_is_better, name
        if not declared.one_sided:
            assert declared.trivial_baseline in score.trivial_baselines, name
        trivial = score.trivial_baselines.values()
        assert all(math.isfinite(numbers["value"]) for numbers in trivial), name
    for name, how in interval_methods(poor).items():
        assert how.kind in {declared_metric(name).interval, "average"}, name
        assert ("/" in name) <= (how.kind == declared_metric(name).interval), name


def test_no_metric_is_declared_that_nothing_computes():
    computed = {parts_of(score.metric)[1] for made in MADE.values() for score in score_predictions(made(0.3))}
    assert computed == METRICS.keys()


class TestTask:
    @pytest.mark.parametrize("name", TASKS)
    def test_its_function_takes_arguments_and_a_device(self, name):
        function = TASKS[name].function()
        assert list(inspect.signature(function).parameters) == ["arguments", "device"]
        assert function.__module__ == f"adaptor_hf.tasks.{name}"
        assert function.__doc__

    @pytest.mark.parametrize("name", TASKS)
    def test_kind_options_and_decision_are_known(self, name):
        task = TASKS[name]
        assert task.kind in (*KINDS, None)
        assert set(task.own_options) <= {option.name for option in fields(DownstreamArguments)}
        # A result line needs all that a card and a comparison show; a task without lines has none of it.
        of_lines = (task.hub_type, task.decides_by, task.headline, task.readouts)
        assert {bool(task.kind)} == set(map(bool, of_lines))

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"needs": ()}, "needs is of labels"),
            ({"needs": ("scribbles",)}, "got scribbles"),
            ({"headline": ("auroc", "hausdorff")}, "'hausdorff' is declared"),
            ({"decides_by": "brier"}, "one of its headline metrics, got 'brier'"),
        ],
    )
    def test_a_declaration_that_cannot_be_meant_is_refused(self, wrong, said):
        right = {"needs": ("labels",), "headline": ("auroc",), "decides_by": "auroc", "hub_type": "x", "run": len,
                 "kind": "classification", "readouts": ("x",), "trains": True}  # fmt: skip
        Task("x", **right)
        with pytest.raises(ValueError, match=said):
            Task("x", **(right | wrong))

    def test_a_task_that_is_not_compared_says_so(self, tmp_path):
        with pytest.raises(ValueError, match="Runs of 'text_understanding' are not compared; those of classification"):
            write_comparison(tmp_path, task="text_understanding")


def test_no_module_has_a_list_of_its_own_of_tasks_or_controls():
    declared = {"tasks": set(TASKS), "controls": set(CONTROLS) | {control.name for control in CONTROLS.values()}}
    found = []
    for path in (path for folder in ("adaptor_hf", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        if path.parent.name == "evaluation" and path.stem in declared:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict | ast.List | ast.Set | ast.Tuple):
                parts = node.keys if isinstance(node, ast.Dict) else node.elts
                words = {part.value for part in parts if isinstance(part, ast.Constant)}
                found += [(path.name, node.lineno, kind) for kind, known in declared.items() if len(words & known) > 2]
    assert found == []


WORDS = ["--task", "classification", "--model", "m", "--table", "t.csv"]


class TestArguments:
    @pytest.mark.parametrize(
        ("task", "asked", "given"),
        [
            ("zero_shot", f"--task zero_shot needs --prompts: {', '.join(list_prompt_sets())}", ["--prompts", "rsna"]),
            ("segmentation", "--task segmentation needs masks: .* --mask_column", ["--mask_column", "mask"]),
            ("retrieval", "--task retrieval needs reports: .* --text_column", ["--text_column", "text"]),
            ("text_understanding", "--task text_understanding needs reports: .* --text_col", ["--text_column", "text"]),
        ],
    )
    def test_what_a_task_needs_is_asked_for_before_anything_is_loaded(self, task, asked, given):
        words = ["--task", task, *WORDS[2:]]
        with pytest.raises(ValueError, match=asked):
            parse_arguments(words)
        assert parse_arguments([*words, *given]).task == task

    def test_a_public_data_set_has_its_own_columns(self):
        words = ["--model", "m", "--dataset", "openi", "--data_root", "r"]
        assert parse_arguments(["--task", "retrieval", *words]).text_column is None

    def test_a_need_of_a_new_task_is_asked_for_too(self, undeclared):
        declare_task(Task("captions", ("reports",), (), None, None, len, None, (), trains=False))
        with pytest.raises(ValueError, match="--task captions needs reports"):
            DownstreamArguments(task="captions", model="m", table="t.csv")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["--protocol", "nonsense"], "Unknown protocol 'nonsense'. Choose one of: rigorous, adaptor, mgca"),
            (["--protocol", "nonsense", "--task", "retrieval", "--text_column", "t"], "Unknown protocol 'nonsense'"),
            (["--protocol", "slip", "--task", "segmentation", "--mask_column", "m"], "segmentation has no protocol"),
            (["--head", "huge"], "head is linear or mlp2, got 'huge'"),
        ],
    )
    def test_a_protocol_that_the_task_has_not_is_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            parse_arguments([*WORDS, *change])
        assert parse_arguments([*WORDS, "--protocol", "slip"]).protocol == "slip"


class TestControls:
    def test_each_is_in_one_group(self):
        assert controls_made("checkpoint") == ("adaptor",)
        assert controls_made("built") == ("tower", "untrained", "mlp")
        assert controls_made("pretrained") == ("projections", "shuffled")
        assert controls_made("fine-tuned") == ("finetune", "lora", "blocks")
        assert controls_made("published") == ("supervised",)
        assert [key for key in CONTROLS if not saw_pairs(key)] == ["tower", "untrained", "mlp", "supervised"]
        assert saw_pairs(None)
        assert saw_pairs("somebody's")

    def test_the_simplest_comes_first_and_what_only_shows_something_is_never_recommended(self):
        ranked = sorted((key for key in CONTROLS if may_be_recommended(key)), key=simplicity_of)
        assert ranked == ["tower", "projections", "mlp", "adaptor", "lora", "blocks", "finetune"]
        assert max(map(simplicity_of, CONTROLS)) == simplicity_of("somebody's")
        assert may_be_recommended("somebody's")

    def test_what_pre_training_saves_is_what_downstream_finds_under_the_same_names(self, tmp_path):
        torch.manual_seed(0)
        model = AdaptorModel(synthetic_config())
        model.save_pretrained(tmp_path)
        systems = [System(key, model) for key in ("adaptor", *controls_made("pretrained"), "untrained")]
        saved = save_controls(systems, tmp_path / "controls")
        assert saved == saved_controls(tmp_path)
        assert list(saved) == ["projections", "shuffled"]
        loaded = load_systems(AdaptorModel.from_pretrained(tmp_path), control_models=saved)
        assert {system.key: system.fields()["system"] for system in loaded} == {
            key: control.name + (f", {next(s.hidden_size for s in loaded if s.key == 'mlp')} hidden" * (key == "mlp"))
            for key, control in CONTROLS.items()
            if control.made not in ("fine-tuned", "frozen", "published")
        }
        assert all(system.fields()["module"] == system.key for system in loaded)

    def test_options_are_those_that_are_declared(self):
        text = " ".join(option_parser().format_help(everything=True).split())
        assert f"Beside the Adaptor: {', '.join(controls_made('built'))}; none" in text
        assert parse_arguments(WORDS).controls == ["tower", "untrained"]
        for key in controls_made("pretrained"):
            assert f"{key}=PATH" in text
        for key in controls_made("fine-tuned"):
            assert f"{'N' if key == METHOD_OF_BLOCKS else key} ({CONTROLS[key].name})" in text
        assert f"zero_shot: {', '.join(list_prompt_sets())}, a JSON file" in text
        assert LEARNING_RATES == {"finetune": 2e-5, "lora": 2e-4, "blocks": 2e-5}

    def test_what_a_control_is_made_of_is_declared_and_no_key(self, monkeypatch):
        monkeypatch.setitem(CONTROLS, "fresh", Control("fresh", "another Adaptor", "built", new_weights=True))
        monkeypatch.setitem(CONTROLS, "wide", Control("wide", "wide head", "built", matched_head=True))
        torch.manual_seed(3)
        model = AdaptorModel(synthetic_config())
        _, fresh, wide, tower = load_systems(model, ["fresh", "wide", "tower"])
        assert {name: fresh.model.state_dict()[name].shape for name in fresh.model.state_dict()} == {
            name: value.shape for name, value in model.state_dict().items()
        }
        assert not all(torch.equal(fresh.model.state_dict()[name], value) for name, value in model.state_dict().items())
        assert (wide.model, wide.hidden_size) == (None, matched_hidden_size(model))
        assert (tower.model, tower.hidden_size) == (None, None)

    @pytest.mark.parametrize(
        ("change", "known"),
        [
            (["--controls", "projections"], "tower, untrained, mlp"),
            (["--control_model", "mlp=x"], "projections, shuffled"),
            (["--train_tower", "adaptor"], "finetune, lora, N"),
        ],
    )
    def test_another_one_is_refused_before_anything_is_loaded(self, change, known):
        with pytest.raises(ValueError, match=rf"Unknown control '\w+'\. Choose of {known}\."):
            parse_arguments([*WORDS, *change])

    def test_a_title_stands_for_the_name(self):
        assert System("adaptor", title="Adaptor, saved model").label == "Adaptor, saved model"
        assert System("adaptor").label == "Adaptor"
