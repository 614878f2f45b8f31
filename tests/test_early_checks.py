"""What is wrong with options is said before any data or tower is read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import train_pretrain
from adaptor_hf.data.places import close_by
from adaptor_hf.objectives import Objective
from adaptor_hf.tasks.arguments import parse_arguments as parse_downstream
from adaptor_hf.tasks.early_checks import check_before_start as check_downstream
from adaptor_hf.towers.check import check_tower, close_towers
from adaptor_hf.training import AdaptorTrainingArguments, early_checks, pair_cache, preparation
from adaptor_hf.training.pair_evaluation import Retrieval

ROOT = Path(__file__).parent.parent


@pytest.fixture
def pipe(tmp_path) -> Path:
    """A table that nobody ever writes: who opens it to read waits forever."""
    os.mkfifo(tmp_path / "pairs.csv")
    return tmp_path / "pairs.csv"


@pytest.fixture
def untouched(monkeypatch):
    """Reading a table, opening a cache or loading a tower fails the test."""

    def touched(*_, **__):
        raise AssertionError("the data was touched")

    monkeypatch.setattr(train_pretrain, "load_training_pairs", touched)
    monkeypatch.setattr(pair_cache, "build_cache", touched)
    monkeypatch.setattr(preparation, "open_together", touched)


def run(table, folder, **options) -> None:
    given = {
        "train_file": table,
        "vision_tower": "lite0",
        "text_tower": "minilm",
        "output_dir": folder,
        "use_cpu": True,
    }
    words = [word for name, value in (given | options).items() for word in (f"--{name}", *map(str, [value]))]
    train_pretrain.main(words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"report_to": "wandb"},
            "--report_to 'wandb': 'wandb' is not installed. Installed: .*tensorboard",
        ),
        ({"report_to": "wandbb"}, "--report_to 'wandbb': there is no such tracker. Did you mean wandb"),
        ({"report_to": "True"}, "--report_to 'True': there is no such tracker"),
        (
            {"metric_for_best_model": "eval_acuracy"},
            "evaluation gives no such metric. .*There are: image_to_text",
        ),
        ({"metric_for_best_model": "eval_mean_recal"}, "no such metric. Did you mean mean_recall"),
        ({"metric_for_best_model": "auroc"}, "no such metric"),
        (
            {"metric_for_best_model": "image_to_text_mean_rank", "greater_is_better": True},
            "less of it is better. Add --greater_is_better False",
        ),
        ({"optim": "adamw_8bit"}, "--optim adamw_8bit: .*bitsandbytes"),
        ({"optim": "sgdd"}, "invalid choice"),
        ({"lr_scheduler_type": "liner"}, "invalid choice"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "--lr_scheduler_type cosine_with_min_lr, .*min_lr"),
        ({"lr_scheduler_kwargs": '{"cycles": 3}'}, "--lr_scheduler_type linear, --lr_scheduler_kwargs: .*cycles"),
        ({"vision_tower": "lite9"}, "tower 'lite9' is no preset .*\n?Did you mean lite0"),
        ({"text_tower": "biobrt"}, "Did you mean biobert"),
        ({"vision_tower": "timm:resnet5O.a1_in1k"}, "timm has no model 'resnet5O.a1_in1k'; similar names: resnet50"),
        (
            {"vision_tower": "xrv:101-elastc"},
            "no weights '101-elastc' .*Did you mean xrv:101-elastic",
        ),
        ({"vision_tower": "facebook/dinov2-smal"}, "could not be loaded[^$]*Did you mean facebook/dinov2-small"),
        ({"vision_tower": "timm:resnet50.a1_in1k"}, "tower 'timm/resnet50.a1_in1k' .*could not be loaded"),
        ({"vision_tower": "biobert"}, "'biobert' is a text tower"),
        ({"dataset_name": "x", "train_fiel": "y"}, "There is no option '--train_fiel'. Did you mean --train_file"),
        ({"image_root": "nowhere"}, "--image_root nowhere does not exist"),
    ],
)
def test_wrong_options_are_said_before_the_data_is_touched(
    pipe, tmp_path, untouched, monkeypatch, capsys, options, message
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((ValueError, OSError, SystemExit)) as raised:
        run(pipe, tmp_path / "run", **options)
    said = capsys.readouterr().err if raised.type is SystemExit else str(raised.value)
    assert re.search(message, said), said
    assert not (tmp_path / "run").exists()


def test_what_is_right_reaches_the_data(pipe, tmp_path, untouched):
    for options in (
        {"report_to": "tensorboard"},
        {"report_to": "none"},
        {"metric_for_best_model": "loss"},
        {"metric_for_best_model": "eval_image_to_text_median_rank"},
        {"optim": "sgd", "lr_scheduler_type": "cosine"},
        {"vision_tower": "xrv:101-elastic"},
    ):
        offline = "xrv:" in options.get("vision_tower", "") and not Path("~/.torchxrayvision").expanduser().exists()
        if not offline:
            with pytest.raises(AssertionError, match="the data was touched"):
                run(pipe, tmp_path / "run", **options)


@pytest.mark.parametrize(
    ("metric", "better"),
    [("eval_loss", False), ("mean_recall", True), ("eval_text_to_image_mean_rank", False), ("alignment", False),
     ("eval_image_uniformity", False), ("image_to_text_mrr", True)],
)  # fmt: skip
def test_less_or_more_is_better_by_the_metric(tmp_path, metric, better):
    arguments = AdaptorTrainingArguments(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=metric)
    assert arguments.greater_is_better is better
    early_checks.check_best_metric(arguments)
    arguments.greater_is_better = not better
    with pytest.raises(ValueError, match=f"Add --greater_is_better {better}"):
        early_checks.check_best_metric(arguments)


@pytest.mark.parametrize("metric", ["distance", "token_alignment", "eval_north_similarity", "num_pairs"])
def test_of_a_metric_that_nobody_declared_the_direction_is_not_guessed(tmp_path, metric):
    arguments = AdaptorTrainingArguments(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=metric)
    assert arguments.greater_is_better is None
    with pytest.raises(ValueError, match=r"no evaluator declares this metric.* --greater_is_better True or"):
        early_checks.check_best_metric(arguments, objective=Objective)
    for given in (True, False):
        arguments = AdaptorTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=metric, greater_is_better=given
        )
        early_checks.check_best_metric(arguments, objective=Objective)
        assert arguments.greater_is_better is given


OWN_TERM = """
from adaptor_hf.objectives import Objective

class Mine(Objective):
    def forward(self, encoded, rows, gather):
        distance = (encoded.image.pooled - encoded.text.pooled).square().sum(1).mean()
        return {"loss": distance, "distance": distance}
"""


def test_a_script_takes_the_term_of_an_objective_of_ones_own_with_its_direction(pipe, tmp_path, untouched):
    (tmp_path / "mine.py").write_text(OWN_TERM, encoding="utf-8")
    own = {"objective": f"{tmp_path}/mine.py:Mine", "metric_for_best_model": "distance"}
    with pytest.raises(ValueError, match="'distance': no evaluator declares this metric"):
        run(pipe, tmp_path / "run", **own)
    with pytest.raises(ValueError, match=r"'mean_recal': no evaluator declares .* Did you mean mean_recall"):
        run(pipe, tmp_path / "run", **own | {"metric_for_best_model": "mean_recal"})
    with pytest.raises(AssertionError, match="the data was touched"):
        run(pipe, tmp_path / "run", **own, greater_is_better=False)
    # The package's own objectives have no other terms than their loss.
    with pytest.raises(ValueError, match="evaluation gives no such metric"):
        run(pipe, tmp_path / "run", metric_for_best_model="distance", greater_is_better=False)


def test_metrics_that_can_be_chosen_by_are_those_of_an_evaluation(views):
    from synthetic import synthetic_model

    found = Retrieval()(synthetic_model(), views["validation"])
    declared = early_checks.evaluation_metrics(("north",))
    assert found.keys() - declared == {"num_pairs", "logit_scale", "loss_batch_size"}
    assert set(declared.values()) == {True, False}


def test_a_mistyped_table_is_said_with_its_neighbour_before_libraries_of_towers_load(tmp_path):
    (tmp_path / "pairs.csv").write_text("image,text\n", encoding="utf-8")
    for script, option in (("train_pretrain.py", "--train_file"), ("train_downstream.py", "--table")):
        words = [script, option, str(tmp_path / "pair.csv"), "--output_dir", str(tmp_path / "run")]
        if script == "train_pretrain.py":
            words += ["--vision_tower", "lite0", "--text_tower", "minilm"]
        else:
            words += ["--task", "classification", "--model", str(tmp_path), "--label_column", "effusion"]
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        assert done.returncode == 1
        assert f"{option} {tmp_path / 'pair.csv'}: no such table" in said[-1]
        assert f"Did you mean {tmp_path / 'pairs.csv'}?" in said[-1]
        # peft is there: transformers itself imports it with its training arguments.
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert not {"timm", "torchxrayvision"} & loaded


def test_close_names_are_of_the_kind_and_a_checkpoint_folder_is_a_tower(tiny_dinov2, tiny_bert):
    assert close_towers("vision", "dinov2-bb")[0] == "dinov2-b"
    assert "biobert" not in close_towers("vision", "biobrt")
    check_tower("vision", str(tiny_dinov2))
    check_tower("text", str(tiny_bert))
    for kind, name in (("vision", "lite0"), ("text", "minilm")):
        check_tower(kind, name)


def test_a_tower_without_weights_is_found_offline(tiny_dinov2, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_bytes((tiny_dinov2 / "config.json").read_bytes())
    with pytest.raises(OSError, match="there are no weights"):
        check_tower("vision", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "labls.csv"}, r"--table .*labls.csv: no such table\..* Did you mean .*labels\.csv\?"),
        ({"model": "modell"}, r"There is no checkpoint .*modell: it is no folder .* Did you mean .*model\?"),
        ({"model": "."}, "has no config.json: it is no finished model"),
        ({"more_models": "modle"}, r"There is no checkpoint .*modle: .* Did you mean .*model\?"),
        ({"external": "other=labls.csv"}, "--external .*labls.csv: no such table"),
        ({"external": "rsna=nowhere"}, "--external .*nowhere does not exist"),
        ({"do_predict": "new.csv"}, "--do_predict .*new.csv: no such table"),
        ({"control_model": "projections=nowhere"}, "projections is to be in .*nowhere, which is no folder"),
        ({"image_root": "nowhere"}, "--image_root .*nowhere does not exist"),
        ({"image_root": "labels.csv"}, "--image_root .*labels.csv is no folder"),
        ({"vision_tower": "lite9"}, "Did you mean lite0"),
        ({"table": None, "dataset": "rsnaa", "data_root": "."}, "Unknown data set 'rsnaa'. Did you mean rsna"),
        ({"table": None, "dataset": "rsna", "data_root": "nowhere"}, "--data_root .*nowhere does not exist"),
        ({}, None),
    ],
)  # fmt: skip
def test_places_of_an_evaluation_are_looked_for_first(tmp_path, options, message):
    (tmp_path / "labels.csv").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    given = {"task": "classification", "model": "model", "table": "labels.csv", "label_column": "x"} | options
    words = ["--output_dir", str(tmp_path / "run")]
    for name, value in given.items():
        if value is not None:
            front, equals, place = value.rpartition("=")
            is_place = name not in ("task", "label_column", "vision_tower", "dataset")
            words += [f"--{name}", f"{front}{equals}{tmp_path / place}" if is_place else value]
    arguments = parse_downstream(words)
    if message is None:
        check_downstream(arguments)
        return
    with pytest.raises((OSError, ValueError), match=message):
        check_downstream(arguments)


def test_a_private_run_gets_no_names_of_other_files(tmp_path, monkeypatch):
    (tmp_path / "pairs.csv").touch()
    assert "pairs.csv" in close_by(str(tmp_path / "pair.csv"))
    monkeypatch.setattr("adaptor_hf.data.places.is_private", lambda: True)
    assert close_by(str(tmp_path / "pair.csv")) == ""


BARS = """
import sys
import datasets
from huggingface_hub.utils import tqdm as hub_bar
from transformers.utils import logging
from adaptor_hf.progress import no_bars_in_a_log
if sys.argv[1] == "log":
    no_bars_in_a_log()
datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)
for _ in hub_bar(range(2)): pass
for _ in logging.tqdm(range(2)): pass
"""


@pytest.mark.parametrize(("kind", "bars"), [("log", False), pytest.param("as they are", True, marks=pytest.mark.slow)])
def test_libraries_draw_no_bars_into_a_log(kind, bars):
    plain = {name: value for name, value in os.environ.items() if not name.endswith("DISABLE_PROGRESS_BARS")}
    done = subprocess.run([sys.executable, "-c", BARS, kind], cwd=ROOT, env=plain, capture_output=True, check=True)
    assert (done.stderr.count(b"\r") >= 3) is bars
    assert bool(done.stderr) is bars


def test_words_that_belong_to_no_option_are_not_repeated(tmp_path):
    # --cache itself takes several.
    for words in (["--check", "off", "Miller, Anna"], ["--cache", "c", "--seed", "1", "Miller, Anna"]):
        with pytest.raises(ValueError, match="A word belongs to no option") as raised:
            train_pretrain.main([*words, "--output_dir", str(tmp_path)])
        assert "Miller" not in str(raised.value)
    with pytest.raises(ValueError, match=r"There is no option '--caches'\. Did you mean --cache\? See") as raised:
        train_pretrain.main(["--caches", "Miller", "--output_dir", str(tmp_path)])
    assert "Miller" not in str(raised.value)
