"""What every training shares: the best weights in memory, two collators, evaluators, losses that are no number."""

import gc
import re
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import adaptor_hf
from adaptor_hf.training.base_trainer import BaseTrainer, KeepBest, in_memory_arguments


class Line(nn.Module):
    """y = weight x + shift, of which the shift does not train."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shift = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x, labels=None):
        if self.training:
            self.seen += len(x)
        return {"loss": ((self.weight * x + self.shift - labels) ** 2).mean(), "logits": self.weight * x}


class Points(Dataset):
    def __init__(self, broken_row=None):
        self.broken_row = broken_row

    def __len__(self):
        return 8

    def __getitem__(self, row):
        x = float("nan") if row == self.broken_row else float(row)
        return {"x": torch.tensor([x]), "labels": torch.tensor([2.0 * row + 1])}


def evaluate(keep: KeepBest, model: nn.Module, *scores: dict) -> list[bool]:
    """Show a callback some evaluations, as Trainer does; whether each ended the training."""
    ended = []
    for step, metrics in enumerate(scores, 1):
        nn.init.constant_(model.weight, step)
        control = SimpleNamespace(should_training_stop=False)
        keep.on_evaluate(None, SimpleNamespace(global_step=step), control, metrics, model=model)
        ended.append(control.should_training_stop)
    return ended


def trainer_of(model, **kwargs) -> BaseTrainer:
    options = {"learning_rate": 0.01, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 6}
    options |= {"eval_strategy": "steps", "eval_steps": 1} | kwargs.pop("options", {})
    datasets = {"train_dataset": Points(), "eval_dataset": Points()}
    return BaseTrainer(model, in_memory_arguments("cpu", **options), **(datasets | {"quiet": True} | kwargs))


def test_a_gain_below_min_delta_is_kept_and_does_not_delay_the_end():
    keep, model = KeepBest("dice", patience=2, min_delta=0.1), Line()
    scores = [{"eval_dice": value} for value in (0.5, 0.55, 0.58, 0.4)]
    assert evaluate(keep, model, *scores) == [False, False, True, True]
    assert (keep.score, keep.step) == (0.58, 3)
    keep.restore(model)
    assert model.weight.item() == 3


def test_less_can_be_better_and_a_tie_goes_to_the_lower_loss():
    keep = KeepBest("loss", greater_is_better=False)
    evaluate(keep, Line(), {"eval_loss": 2.0}, {"eval_loss": 1.0}, {"eval_loss": 1.5})
    assert (keep.score, keep.step) == (-1.0, 2)
    same = [{"eval_auroc": 1.0, "eval_loss": loss} for loss in (0.4, 0.3, 0.3, 0.5)]
    keep = KeepBest("auroc", tie_break="loss")
    evaluate(keep, Line(), *same)
    assert keep.step == 2
    keep = KeepBest("auroc")
    evaluate(keep, Line(), *same)
    assert keep.step == 1


def test_kept_is_what_training_changes_and_later_steps_do_not_reach_it():
    keep, model = KeepBest("score"), Line()
    evaluate(keep, model, {"eval_score": 1.0})
    assert keep.weights.keys() == {"weight", "seen"}
    with torch.no_grad():
        model.weight.fill_(7)
        model.seen.fill_(7)
    keep.restore(model)
    assert (model.weight.item(), model.seen.item(), model.shift.item()) == (1, 0, 1)


def test_without_an_evaluation_the_weights_stay():
    model = Line()
    KeepBest("score").restore(model)
    assert model.weight.item() == 0


def test_training_ends_with_the_weights_of_its_best_evaluation():
    model, seen = Line(), []

    def evaluator(model, dataset):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(model.weight.item())
        return {"score": -abs(len(seen) - 3)}

    keep = KeepBest("score")
    trainer_of(model, keep_best=keep, evaluators=[evaluator]).train()
    assert len(seen) == 6
    assert keep.step == 3
    assert model.weight.item() == seen[2] != seen[5]
    assert model.seen.item() == 3 * 4


def test_a_loss_function_is_minimised_instead_of_the_models_own_loss():
    model = Line()
    trainer = trainer_of(
        model,
        loss_function=lambda model, batch: (model(**batch)["logits"] + batch["x"]).pow(2).mean(),
        options={"max_steps": 80, "eval_strategy": "no", "learning_rate": 0.1},
    )
    trainer.train()
    assert model.weight.item() == pytest.approx(-1, abs=0.05)


def test_evaluation_and_prediction_have_their_own_collator():
    sizes = {"training": [], "evaluation": []}

    def collator(name):
        def collate(rows):
            sizes[name].append(len(rows))
            return torch.utils.data.default_collate(rows)

        return collate

    trainer = trainer_of(
        Line(),
        data_collator=collator("training"),
        eval_collator=collator("evaluation"),
        options={"max_steps": 2, "eval_strategy": "no", "label_names": ["labels"]},
    )
    trainer.train()
    assert sizes == {"training": [4, 4], "evaluation": []}
    trainer.evaluate()
    trainer.predict(Points())
    assert sizes == {"training": [4, 4], "evaluation": [4] * 4}


@pytest.mark.parametrize("evaluators", [[], [lambda model, dataset: {"loss": float("inf")}]])
def test_a_loss_on_validation_that_is_not_finite_is_an_error(evaluators):
    # One batch of the two is whole.
    trainer = trainer_of(
        Line(), evaluators=evaluators, eval_dataset=Points(broken_row=6), options={"label_names": ["labels"]}
    )
    with pytest.raises(FloatingPointError, match=r"loss on validation is (nan|inf) at step 0, rate 0\.01"):
        trainer.evaluate()


def test_a_quiet_training_logs_nothing_and_another_does(capsys):
    for quiet in (True, False):
        trainer = trainer_of(Line(), quiet=quiet, evaluators=[lambda model, dataset: {"score": 1.0}])
        trainer.train()
        assert bool(trainer.state.log_history) is not quiet
    assert capsys.readouterr().out == ""


def test_a_finished_training_holds_nothing_and_python_is_as_before():
    """Many heads are trained in one process, on features that may be large."""
    trainer = trainer_of(Line(), evaluators=[lambda model, dataset: {"score": 1.0}], keep_best=KeepBest("score"))
    dataset = weakref.ref(trainer.train_dataset)
    gc.disable()
    try:
        trainer.train()
        del trainer
        assert dataset() is None
    finally:
        gc.enable()
    assert "lomo_optim" not in sys.modules


def test_a_protocols_batch_is_not_multiplied_by_the_gpus_of_the_machine(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: getattr(self, "_n_gpu", 2)))
    monkeypatch.setattr("transformers.TrainingArguments._setup_devices", torch.device("cpu"))
    arguments = in_memory_arguments("cuda", per_device_train_batch_size=4)
    assert arguments.train_batch_size == 4


def test_nothing_else_trains_by_gradient():
    """`AdaptorTrainer` stands on it; dry_*.py measure steps at rate 0; grad_cache.py is a part of a step."""
    package = Path(adaptor_hf.__file__).parent
    sources = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert [name for name, text in sources.items() if "(Trainer)" in text] == ["training/base_trainer.py"]
    assert {name for name, text in sources.items() if re.search(r"\.backward\(|optimizer\.step\(", text)} == {
        "training/dry_live.py",
        "training/dry_run.py",
        "training/grad_cache.py",
        "training/trainer.py",
    }
