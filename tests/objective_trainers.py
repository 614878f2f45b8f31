"""Trainers with an objective that owns parameters and a momentum copy, for tests of objectives."""

import copy
from pathlib import Path

import torch
from synthetic import synthetic_model
from torch import nn
from transformers import TrainerCallback

from adaptor_hf.objectives import Objective, Side
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

ROOT = Path(__file__).parent.parent


STEPS = 8  # an epoch of the 124 training pairs in batches of 16


class Teacher(Objective):
    """Distance to a momentum copy of the model, through a projector of its own; it leaves the model's scale alone."""

    name = "teacher"

    def __init__(self, momentum: float = 0.9):
        super().__init__()
        self.momentum, self.events = momentum, []

    def setup(self, model, args):
        self.events.append("setup")
        self.projector = nn.Linear(model.config.hidden_size, model.config.hidden_size)
        self.copy = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    def encode(self, model, batch):
        encoded = super().encode(model, batch)
        with torch.no_grad():
            targets = self.copy.eval()(image_embeds=batch["image_embeds"], return_logits=False).image_embeds
        encoded.more["teacher"] = Side(targets)
        return encoded

    def forward(self, encoded, rows, gather):
        targets = encoded.more["teacher"].pooled
        distance = (self.projector(encoded.text.pooled) - targets).pow(2).sum(1).mean()
        spread = encoded.image.pooled.std(0).mean()
        self.events.append((distance.item(), spread.item()))
        return {"loss": distance - spread, "distance": distance, "spread": spread}

    def before_step(self, progress):
        gradients = [value.grad is not None for value in self.projector.parameters()]
        self.events.append(("before", progress, all(gradients)))

    def after_step(self, model):
        self.events.append("after")
        self.steps_done += 1
        for kept, new in zip(self.copy.parameters(), model.parameters(), strict=True):
            kept.mul_(self.momentum).add_(new, alpha=1 - self.momentum)


def make_trainer(folder, views, objective="adaptor", model=None, callbacks=None, trainer=None, **kwargs):
    options = {"global_batch_size": 16, "num_train_epochs": 1, "learning_rate": 3e-3, "logging_strategy": "steps"}
    options |= {"logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    return AdaptorTrainer(
        model=synthetic_model() if model is None else model,
        args=AdaptorTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **(options | kwargs)),
        objective=objective,
        train_dataset=views["train"],
        eval_dataset=views["validation"],
        callbacks=callbacks,
        **(trainer or {}),
    )


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Stop(TrainerCallback):
    """Saves and stops after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True
