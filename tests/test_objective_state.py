"""What an objective adds to the model, in a run: its terms in TensorBoard, its weights when they break or are kept."""

import copy

import pytest
import torch
from objective_trainers import STEPS, Teacher, logged, make_trainer
from synthetic import synthetic_config, synthetic_model
from transformers import TrainerCallback

from adaptor_hf import AdaptorModel
from adaptor_hf.training import AdaptorTrainingArguments
from adaptor_hf.training.base_trainer import KeepBest
from adaptor_hf.training.controls import train_control
from adaptor_hf.training.pair_evaluation import Retrieval

SAVING = {"save_strategy": "steps", "save_steps": 4}


def test_tensorboard_has_the_terms(views, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(tmp_path / "run", views, Teacher(), report_to=["tensorboard"], logging_steps=2)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    for name in ("loss", "distance", "spread"):
        found = events.Scalars(f"train/{name}")
        assert [event.step for event in found] == [2, 4, 6, 8]
        assert [event.value for event in found] == pytest.approx(logged(trainer, name))


def test_broken_weights_of_the_objective_are_named_and_not_saved(views, tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == STEPS:
                objective.projector.bias.data[0] = torch.nan

    objective = Teacher()
    trainer = make_trainer(tmp_path, views, objective, callbacks=[Poison()], **SAVING)
    with pytest.raises(FloatingPointError, match=rf"NaN or infinite before step {STEPS} \(projector\.bias\)"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    with pytest.raises(FloatingPointError, match=r"projector\.bias"):
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()


def test_keep_best_keeps_the_model_and_leaves_the_objective_as_the_last_step_did(views, tmp_path):
    scores, seen = iter([1.0, 2.0, 0.0, 0.0]), []

    def score(model, dataset):
        seen.append(copy.deepcopy(model.state_dict()))
        return {"score": next(scores)}

    model, objective = synthetic_model(), Teacher()
    make_trainer(
        tmp_path, views, objective, model, eval_strategy="steps", eval_steps=2, metric_for_best_model="score",
        greater_is_better=True,
        trainer={"evaluators": [score], "keep_best": KeepBest("score")},
    ).train()  # fmt: skip
    assert all(torch.equal(value, seen[1][name]) for name, value in model.state_dict().items())
    assert not torch.equal(seen[1]["text_projection.weight"], seen[-1]["text_projection.weight"])
    assert objective.steps_done == STEPS


def test_every_training_of_a_control_has_an_objective_of_its_own(views, tmp_path):
    made = []

    def make():
        made.append(Teacher())
        return made[-1]

    arguments = AdaptorTrainingArguments(
        str(tmp_path), global_batch_size=16, num_train_epochs=2, use_cpu=True, disable_tqdm=True
    )
    pairs = views["train"], views["validation"]
    model, rate, score = train_control(synthetic_config(), *pairs, arguments, [1e-4, 3e-3], make)
    assert [objective.events.count("setup") for objective in made] == [1, 1]
    # Projector and momentum copy start alike and end by the rate that each was trained with.
    slow, fast = (objective.state_dict() for objective in made)
    assert not torch.equal(slow["projector.weight"], fast["projector.weight"])
    assert slow["steps_done"] == fast["steps_done"] == 2 * STEPS
    assert rate in (1e-4, 3e-3)
    assert Retrieval()(model.eval(), views["validation"])["mean_recall"] == score


def test_towers_that_no_checkpoint_has_are_not_reported_missing(text_tower, tmp_path, caplog):
    model = AdaptorModel.from_towers(None, text_tower, hidden_size=48, num_attention_heads=4, vision_hidden_size=20)
    ids = torch.randint(5, 30, (12, 6), generator=torch.Generator().manual_seed(0))
    rows = [{"image_embeds": torch.randn(20), "input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    views = {"train": rows, "validation": rows[:4]}
    options = SAVING | {"global_batch_size": 4, "num_train_epochs": 2, "eval_strategy": "steps", "eval_steps": 4}
    make_trainer(tmp_path, views, model=model, load_best_model_at_end=True, **options).train()
    resumed = make_trainer(tmp_path, views, model=model, load_best_model_at_end=True, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "missing keys" not in caplog.text
    # What a checkpoint lacks of the Adaptor itself is said.
    lost = resumed.model.load_state_dict({"logit_scale": torch.ones(())}, strict=False)
    resumed._issue_warnings_after_load(lost)
    assert "missing keys" in caplog.text
    assert "visual_projection.weight" in caplog.text
    assert "text_model." not in caplog.text
