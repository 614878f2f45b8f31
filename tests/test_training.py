"""AdaptorTrainer: it learns, resumes to the bit, refuses what would be silently wrong."""

import json
import os
import subprocess
import sys

import pytest
import torch
from synthetic import synthetic_cache, synthetic_model
from transformers import TrainerCallback

from adaptor_hf import AdaptorModel
from adaptor_hf.configs import accelerate_config
from adaptor_hf.embeddings import open_cache
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.checkpoints import RunningLoss, sum_of_logged
from adaptor_hf.training.controls import (
    ShuffledPairs,
    compare_retrieval,
    evaluate_retrieval,
    format_table,
    train_controls,
)
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.training.summary import fit_batch_to_data, number_of_steps, parameter_counts


def make_arguments(folder, **kwargs) -> AdaptorTrainingArguments:
    defaults = {
        "global_batch_size": 16,
        "num_train_epochs": 4,
        "learning_rate": 3e-3,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return AdaptorTrainingArguments(output_dir=str(folder), **(defaults | kwargs))


def make_trainer(folder, views, model=None, callbacks=None, **kwargs) -> AdaptorTrainer:
    return AdaptorTrainer(
        model=model if model is not None else synthetic_model(),
        args=make_arguments(folder, **kwargs),
        train_dataset=views["train"],
        eval_dataset=views["validation"],
        callbacks=callbacks,
    )


class StopAt(TrainerCallback):
    """Save and stop after a step, as an interruption in the middle of an epoch would find it."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True
        return control


def test_defaults_are_the_papers_recipe(tmp_path):
    arguments = AdaptorTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (arguments.learning_rate, arguments.num_train_epochs, arguments.weight_decay) == (2e-5, 50, 0.01)
    assert (arguments.per_device_train_batch_size, arguments.global_batch_size) == (1024, 1024)
    assert (arguments.max_grad_norm, arguments.warmup_steps) == (0.0, 0.02)
    assert arguments.lr_scheduler_type == "linear"
    assert arguments.get_warmup_steps(13_550) == 271
    assert arguments.hub_private_repo is True


def test_training_finds_the_pairs_of_held_out_patients_and_keeps_the_best_checkpoint(tmp_path, views):
    trainer = make_trainer(tmp_path, views, num_train_epochs=15)
    before = trainer.evaluate()["eval_mean_recall"]
    trainer.train()
    after = trainer.evaluate()
    assert before < 0.5
    assert after["eval_mean_recall"] > 0.8
    best = max(entry["eval_mean_recall"] for entry in trainer.state.log_history if "eval_mean_recall" in entry)
    assert after["eval_mean_recall"] == best
    assert {"eval_alignment", "eval_image_uniformity", "eval_loss", "eval_text_to_image_median_rank"} <= after.keys()
    checkpoints = sorted(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) <= 2
    assert trainer.state.best_model_checkpoint in map(str, checkpoints)


def test_a_run_on_a_lone_device_is_bit_equal_when_repeated(tmp_path, views):
    weights = []
    for run in "ab":
        trainer = make_trainer(tmp_path / run, views, num_train_epochs=2)
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.parametrize("stop", [3, 7, 10])
def test_resuming_in_the_middle_of_an_epoch_gives_the_same_weights_to_the_bit(tmp_path, views, stop):
    options = {"num_train_epochs": 3, "load_best_model_at_end": False}
    whole = make_trainer(tmp_path / "whole", views, **options)
    summary = whole.train()
    make_trainer(tmp_path / "cut", views, callbacks=[StopAt(stop)], **options).train()
    before = json.loads((tmp_path / "cut" / f"checkpoint-{stop}" / RunningLoss.FILE).read_text())["seconds"]
    resumed = make_trainer(tmp_path / "cut", views, model=synthetic_model(seed=9), **options)
    summary_of_resumed = resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 24
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    state, other = whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert all(torch.equal(state[key]["exp_avg"], other[key]["exp_avg"]) for key in state)
    # The summary is of all 24 steps, whatever process made them.
    # The one that stopped has logged there, so that float32 has summed in other parts.
    assert summary_of_resumed.training_loss == pytest.approx(summary.training_loss, rel=1e-6)
    assert summary_of_resumed.training_loss == pytest.approx(sum_of_logged(whole.state.log_history) / 24)
    metrics = summary_of_resumed.metrics
    assert metrics["train_runtime"] >= before > 0
    assert metrics["train_runtime"] * metrics["train_steps_per_second"] == pytest.approx(24, rel=0.05)
    assert metrics["train_runtime"] * metrics["train_samples_per_second"] == pytest.approx(3 * 124, rel=0.05)


def test_a_checkpoint_beyond_the_end_of_the_run_is_refused(tmp_path, views):
    make_trainer(tmp_path, views, num_train_epochs=2, load_best_model_at_end=False).train()
    shorter = make_trainer(tmp_path, views, num_train_epochs=1, load_best_model_at_end=False)
    with pytest.raises(ValueError, match=r"has 16 steps, this run only 8: .* --num_train_epochs"):
        shorter.train(resume_from_checkpoint=True)


def test_a_checkpoint_has_no_pickle_of_arguments_and_loads_alone(tmp_path, views):
    trainer = make_trainer(tmp_path, views, num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    names = {path.name for path in tmp_path.iterdir()}
    assert "training_args.bin" not in names
    assert json.loads((tmp_path / "training_args.json").read_text())["learning_rate"] == 3e-3
    model = AdaptorModel.from_pretrained(tmp_path)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_nan_in_a_batch_raises_with_its_rows_and_leaves_the_weights(tmp_path, views):
    class Poisoned(ShuffledPairs):
        def __getitems__(self, rows):
            batch = self.pairs.__getitems__(rows)
            batch["image_embeds"][batch["row"] == 5] = float("nan")
            return batch

    model = synthetic_model()
    trainer = AdaptorTrainer(
        model=model,
        args=make_arguments(tmp_path),
        train_dataset=Poisoned(views["train"], 0),
        eval_dataset=views["test"],
    )
    with pytest.raises(FloatingPointError, match=r"image_embeds of rows \[5\]"):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_nan_loss_in_the_log_stops_the_run(tmp_path, views):
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        make_trainer(tmp_path, views).log({"loss": float("nan")})


def test_fused_pairs_are_refused(tmp_path, views):
    trainer = make_trainer(tmp_path, views)
    batch = {"image_embeds": torch.zeros(2, 20), "text_embeds": torch.zeros(2, 28), "fuse_pairs": True}
    with pytest.raises(ValueError, match="see its own text"):
        trainer.compute_loss(trainer.model, batch)


def test_positives_change_the_loss_only_where_texts_repeat(tmp_path, views):
    model = synthetic_model().eval()
    rows = list(range(len(views["train"])))
    batch = views["train"].__getitems__(rows)
    assert len(batch["text_row"].unique()) < len(rows)
    losses = {
        positives: make_trainer(tmp_path, views, model=model, positives=positives).compute_loss(model, dict(batch))
        for positives in ("pair", "text", "study")
    }
    # Fewer negatives, lower loss: a study here holds two texts.
    assert losses["study"] < losses["text"] < losses["pair"]


def test_evaluation_scores_every_pair_whatever_the_batch_size(tmp_path, views):
    model = synthetic_model()
    results = [
        make_trainer(tmp_path, views, model=model, per_device_eval_batch_size=size).evaluate() for size in (7, 1024)
    ]
    for name in ("eval_mean_recall", "eval_loss", "eval_alignment"):
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-6)
    assert results[0]["eval_num_pairs"] == len(views["validation"])
    assert model.training


class TestSizes:
    def test_a_batch_larger_than_the_data_becomes_all_of_it(self, tmp_path):
        arguments = make_arguments(tmp_path, global_batch_size=1024)
        with pytest.warns(UserWarning, match="larger than the training data"):
            fit_batch_to_data(arguments, 100)
        assert arguments.global_batch_size == arguments.per_device_train_batch_size == 100

    def test_per_device_size_overrides_the_global_one(self, tmp_path):
        arguments = make_arguments(tmp_path, per_device_train_batch_size=8)
        assert arguments.global_batch_size == 8

    @pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the processes join by themselves")
    def test_processes_that_did_not_join_are_refused(self, tmp_path):
        (tmp_path / "arguments.py").write_text(
            "from adaptor_hf.training import AdaptorTrainingArguments\nAdaptorTrainingArguments(output_dir='x')\n"
        )
        config = accelerate_config("two_cpu")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "arguments.py"]
        environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
        finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert finished.returncode != 0
        assert "did not join" in finished.stderr

    def test_steps_are_those_of_the_trainer(self, tmp_path, views):
        trainer = make_trainer(tmp_path, views, num_train_epochs=2)
        trainer.train()
        assert trainer.state.global_step == number_of_steps(trainer.args, len(views["train"]))

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [({"global_batch_size": 1}, "at least 2"), ({"positives": "image"}, "positives must be one of")],
    )
    def test_impossible_arguments_raise(self, tmp_path, kwargs, message):
        with pytest.raises(ValueError, match=message):
            make_arguments(tmp_path, **kwargs)

    def test_counts_name_what_gets_a_gradient(self):
        model = synthetic_model()
        counts = parameter_counts(model)
        assert counts["trainable"] == model.num_parameters()
        assert counts["trainable"] - counts["receiving_gradient"] == 2 * 2 * (48 * 48 + 48)
        assert parameter_counts(model, tokens=5)["receiving_gradient"] == counts["trainable"]


class TestSplitsForTraining:
    def test_image_only_rows_are_left_out_and_counted(self, tmp_path):
        from datasets import Dataset

        from adaptor_hf.embeddings import import_embeddings

        table = Dataset.from_dict(
            {
                "text": ["a", None, "b", "c"],
                "split": ["train"] * 4,
                "image_id": list("wxyz"),
                "patient_id": list("1234"),
            }
        )
        cache = import_embeddings(
            image=torch.rand(4, 3).numpy(), text=torch.rand(4, 3).numpy(), table=table, cache_dir=tmp_path
        )
        views = contrastive_splits(cache)
        assert len(views["train"]) == 3
        assert cache.num_image_only == 1
        assert "validation" not in views

    def test_one_pair_is_refused_with_counts(self, tmp_path):
        cache = synthetic_cache(tmp_path, num_rows=4, num_texts=4)
        lone = cache.select([0])
        with pytest.raises(ValueError, match="1 pairs and 1 distinct texts"):
            contrastive_splits(lone)


class TestControls:
    def test_the_adaptor_beats_shuffled_pairs_and_chance_on_correlated_data(self, tmp_path, views):
        arguments = make_arguments(tmp_path, num_train_epochs=10)
        config = synthetic_model().config
        systems = train_controls(config, views["train"], views["validation"], arguments, [1e-3, 5e-3])
        results = compare_retrieval(systems, views["test"])
        recall = {result.name: result.metrics["mean_recall"] for result in results}
        assert list(recall) == [
            "Adaptor",
            "two linear projections",
            "Adaptor, shuffled pairs",
            "Adaptor, untrained",
        ]
        assert recall["Adaptor"] > recall["Adaptor, shuffled pairs"] + 0.2
        assert recall["Adaptor"] > results[0].chance["mean_recall"] + 0.2
        assert results[0].learning_rate in (1e-3, 5e-3)
        low, high = results[0].intervals["mean_recall"]
        assert low <= recall["Adaptor"] <= high
        table = format_table(results)
        rows = {row.split(" | ")[0].strip("| "): row for row in table.splitlines()[2:7]}
        assert list(rows) == [*recall, "trivial: chance"]
        assert f"{results[0].chance['image_to_text_recall@1']:.3f}" in rows["trivial: chance"]
        assert "†" not in rows["Adaptor"]
        assert "†" in rows["Adaptor, shuffled pairs"]
        assert table.splitlines()[-1].startswith("† Not above its best trivial baseline")

    def test_shuffled_pairs_keep_images_and_move_texts(self, views):
        shuffled = ShuffledPairs(views["train"], seed=0)
        rows = list(range(len(shuffled)))
        plain, moved = views["train"].__getitems__(rows), shuffled.__getitems__(rows)
        assert torch.equal(plain["image_embeds"], moved["image_embeds"])
        assert not torch.equal(plain["text_row"], moved["text_row"])
        assert torch.equal(plain["text_row"].sort().values, moved["text_row"].sort().values)

    def test_intervals_are_over_patients(self, views):
        result = evaluate_retrieval(synthetic_model(), views["test"], "x")
        assert set(result.metrics) == set(result.chance)
        assert set(result.metrics) - set(result.intervals) == {
            "image_to_text_median_rank", "text_to_image_median_rank",
        }  # fmt: skip


def test_a_cache_can_be_built_here_and_trained_elsewhere(tmp_path):
    cache = synthetic_cache(tmp_path / "here", num_rows=40, num_texts=30)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = open_cache(tmp_path / "there")
    assert len(moved) == len(cache)
    make_trainer(tmp_path / "run", contrastive_splits(moved), num_train_epochs=1).train()
