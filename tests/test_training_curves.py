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


def test_without_matplotlib_the_run_goes_on_and_says_so_once(monkeypatch, tmp_path, caplog):
    real = builtins.__import__

    def absent(name, *more, **options):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with caplog.at_level("INFO"):
        assert draw_curves(tmp_path, history(), 16) is None
    assert [message for message in caplog.messages if "adaptor-hf[plots]" in message] == caplog.messages
    assert len(caplog.messages) == 1
    assert draw_curves(tmp_path, [], 16) is None
    assert not list(tmp_path.iterdir())


def lines_of(arguments, capsys, steps: int, every: int = 1) -> list[str]:
    shown, state = ProgressLines(), TrainerState(max_steps=steps)
    shown.on_train_begin(arguments, state, TrainerControl())
    for step in range(every, steps + 1, every):
        state.global_step = step
        for entry in ({"loss": 1.0, "learning_rate": 0.1}, {"eval_mean_recall": 0.5, "eval_loss": 1.0}):
            shown.on_log(arguments, state, TrainerControl(), logs=entry)
    return capsys.readouterr().out.splitlines()


def test_a_log_gets_no_more_than_some_lines_of_each_kind_and_the_last_one(tmp_path, views, capsys):
    arguments = make_trainer(tmp_path, views).args
    capsys.readouterr()
    few = lines_of(arguments, capsys, 50)
    assert len(few) == 100
    many = lines_of(arguments, capsys, 13_550)
    assert LINES <= sum("loss 1.0000, learning" in line for line in many) <= LINES + 1
    assert LINES <= sum("mean recall" in line for line in many) <= LINES + 1
    assert all("step 13,550 of 13,550" in line for line in many[-2:])
    assert len(set(many)) == len(many)


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
