"""The picture and the lines of a training: what was logged, once, and not by the thousand."""

import builtins
import json

import numpy as np
from test_training import make_trainer
from transformers import TrainerControl, TrainerState

from adaptor_hf.evaluation.retrieval import retrieval_metrics
from adaptor_hf.training.curves import draw_curves
from adaptor_hf.training.progress import LINES, ProgressLines
from adaptor_hf.training.report import last_words


def history(steps: int = 8) -> list[dict]:
    found = []
    for step in range(1, steps + 1):
        found.append({"step": step, "loss": 2 / step, "learning_rate": 1e-3 / step, "grad_norm": 1.0})
        found.append({"step": step, "eval_loss": 3 / step, "eval_loss_batch_size": 5, "eval_mean_recall": step / steps,
                      "eval_logit_scale": 14.0 + step})  # fmt: skip
    return found


def drawn(monkeypatch, tmp_path, log, **options) -> dict[str, dict[str, list]]:
    """Of each panel the curves as matplotlib was told to draw them."""
    import matplotlib.axes

    found = []
    plot = matplotlib.axes.Axes.plot

    def note(axis, steps, values, **more):
        found.append((axis, more["label"], list(zip(steps, values, strict=True))))
        return plot(axis, steps, values, **more)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", note)
    path = draw_curves(tmp_path, log, 16, **options)
    assert path.read_bytes().startswith(b"\x89PNG")
    panels: dict[str, dict[str, list]] = {}
    for axis, label, points in found:
        panels.setdefault(axis.get_ylabel(), {})[label] = points
    return panels


def test_every_curve_is_what_was_logged(monkeypatch, tmp_path):
    panels = drawn(monkeypatch, tmp_path, history())
    assert panels["loss"]["training, batches of 16"] == [(step, 2 / step) for step in range(1, 9)]
    assert panels["loss"]["validation, batches of 5"] == [(step, 3 / step) for step in range(1, 9)]
    assert panels["mean recall (validation)"]["Adaptor"][-1] == (8, 1.0)
    assert panels["learning rate"]["learning rate"][0] == (1, 1e-3)
    assert panels["similarity scale"]["similarity scale"][1] == (2, 16.0)
    assert not list(tmp_path.glob(".*"))


def test_without_validation_there_are_no_panels_of_it(monkeypatch, tmp_path):
    log = [entry for entry in history() if "loss" in entry]
    assert list(drawn(monkeypatch, tmp_path, log)) == ["loss", "learning rate"]


def test_chance_is_that_of_random_orders_of_the_split(monkeypatch, tmp_path, views):
    import matplotlib.axes
    import torch

    lines = []
    monkeypatch.setattr(matplotlib.axes.Axes, "axhline", lambda axis, y, **more: lines.append(y))
    draw_curves(tmp_path, history(), 16, views["validation"])
    rows, generator = torch.from_numpy(views["validation"].text_rows), torch.Generator().manual_seed(0)
    measured = [
        retrieval_metrics(*torch.randn(2, len(rows), 64, generator=generator), rows)[0]["mean_recall"]
        for _ in range(300)
    ]
    assert abs(lines[0] - np.mean(measured)) < 4 * np.std(measured) / 300**0.5


def test_without_matplotlib_the_run_goes_on_without_a_word_at_its_end(monkeypatch, tmp_path, caplog):
    """The plan at the start of the run says it: tests/test_plan.py."""
    real = builtins.__import__

    def absent(name, *more, **options):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with caplog.at_level("INFO"):
        assert draw_curves(tmp_path, history(), 16) is None
    assert not caplog.messages
    assert draw_curves(tmp_path, [], 16) is None
    assert not list(tmp_path.iterdir())


def lines_of(arguments, capsys, steps: int, epochs: int | None = None) -> list[str]:
    """What is printed of a training that logs and evaluates after each step, which is an epoch here."""
    shown, state = ProgressLines(), TrainerState(max_steps=steps)
    state.num_train_epochs = epochs or steps
    shown.on_train_begin(arguments, state, TrainerControl())
    for step in range(1, steps + 1):
        state.global_step, state.epoch = step, float(step)
        shown.on_epoch_begin(arguments, state, TrainerControl())
        recall = 0.5 if step == 3 else 0.1
        for entry in ({"loss": 1.0, "learning_rate": 0.1}, {"eval_mean_recall": recall, "eval_loss": 1.0}):
            state.log_history.append({**entry, "step": step, "epoch": float(step)})
            shown.on_log(arguments, state, TrainerControl(), logs=entry)
    return capsys.readouterr().out.splitlines()


def test_a_log_gets_no_more_than_some_lines_of_each_kind_and_the_last_one(tmp_path, views, capsys):
    by_step = {"logging_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1,
               "load_best_model_at_end": False}  # fmt: skip
    arguments = make_trainer(tmp_path, views, **by_step).args
    capsys.readouterr()
    few = lines_of(arguments, capsys, 50)
    assert len(few) == 100
    many = lines_of(arguments, capsys, 2_550)
    assert LINES <= sum("loss 1.0000, learning" in line for line in many) <= LINES + 1
    assert LINES <= sum("mean recall" in line for line in many) <= LINES + 1
    assert all("step 2,550 of 2,550" in line for line in many[-2:])
    assert len(set(many)) == len(many)


def test_of_epochs_there_is_one_line_each_with_the_best_so_far(tmp_path, views, capsys):
    arguments = make_trainer(tmp_path, views).args
    capsys.readouterr()
    lines = lines_of(arguments, capsys, 50)
    assert [line.split(":")[0] for line in lines] == [f"epoch {n}/50" for n in range(1, 51)]
    assert "loss 1.0000, validation mean recall 0.100, best 0.100 (epoch 1)" in lines[1]
    assert all("best 0.500 (epoch 3)" in line for line in lines[2:])
    assert all(line.endswith(" left)") for line in lines)
    assert lines[-1].endswith(", 0:00:00 left)")
    many = lines_of(arguments, capsys, 1_000)
    assert LINES <= len(many) <= LINES + 1
    assert "epoch 1000/1000" in many[-1]


def test_the_best_is_that_of_the_metric_that_chooses(tmp_path, views, capsys):
    arguments = make_trainer(tmp_path, views, metric_for_best_model="loss").args
    shown, state = ProgressLines(), TrainerState(max_steps=3)
    state.num_train_epochs = 3
    capsys.readouterr()
    for step, loss in enumerate((3.0, 2.0, 5.0), 1):
        state.global_step, state.epoch = step, float(step)
        entry = {"eval_mean_recall": 0.1 * step, "eval_loss": loss, "step": step, "epoch": float(step)}
        state.log_history.append(entry)
        shown.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0, "sharpness": 0.25, "grad_norm": 2.0})
        shown.on_log(arguments, state, TrainerControl(), logs=entry)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "epoch 3/3: loss 1.0000, sharpness 0.2500, validation mean recall 0.300, best loss 2.000 (epoch 2)"
    )


def test_epochs_that_are_not_evaluated_have_their_line_too(tmp_path, views, capsys):
    trainer = make_trainer(tmp_path, views, num_train_epochs=3, eval_delay=2, disable_tqdm=True)
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [("loss" in line, "recall" in line) for line in lines] == [(True, False), (True, True), (True, True)]


def test_last_words_of_a_private_run_name_no_place(views, tmp_path, monkeypatch):
    said = last_words(str(tmp_path), views["train"], built=True)
    assert f"--cache {views['train'].path}" in said
    assert "--cache" not in last_words(str(tmp_path), views["train"], built=False)
    monkeypatch.setattr("adaptor_hf.training.report.is_private", lambda: True)
    private = last_words(str(tmp_path), views["train"], built=True)
    assert str(views["train"].path) not in private
    assert "--cache" in private


def test_the_log_of_a_training_is_what_the_state_keeps(tmp_path, views):
    trainer = make_trainer(tmp_path, views, num_train_epochs=2)
    trainer.train()
    trainer.save_state()
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert draw_curves(tmp_path, log, 16, views["validation"]).is_file()
