"""Trainers whose towers train, on made-up pairs of pixels and token ids; also what a rank of two runs."""

import copy
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback

from adaptor_hf import AdaptorModel
from adaptor_hf.frozen_towers_adaptor import TextTower, VisionTower
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

ROWS = 24
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


def live_pairs(rows: int = ROWS) -> list[dict[str, torch.Tensor]]:
    """Images with a bright stripe at a place that the text names."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for row in range(rows):
        pixels = 0.3 * torch.randn(3, 28, 28, generator=generator)
        pixels[:, row : row + 3] += 2
        ids = torch.tensor([2, 10 + row, 50 - row, 3] + [0] * (row % 3))
        ids[4:] = 11
        mask = torch.ones_like(ids)
        ids, mask = nn.functional.pad(ids, (0, 6 - len(ids))), nn.functional.pad(mask, (0, 6 - len(mask)))
        found.append({"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "row": torch.tensor(row)})
    return found


def live_model(vision: VisionTower, text: TextTower, trains=("full", "full"), dropout: float | None = None, **config):
    """An Adaptor on copies of two towers, of which `trains` says what trains; `dropout` is everywhere, if given."""
    torch.manual_seed(0)
    if dropout is not None:
        config |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = AdaptorModel.from_towers(copy.deepcopy(vision), copy.deepcopy(text), **(SMALL | config))
    model.set_trainable_towers(vision_model=trains[0], text_model=trains[1])
    for module in model.modules() if dropout is not None else ():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = dropout
    return model


class Stop(TrainerCallback):
    """Saves and stops after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def live_trainer(folder: Path, model: AdaptorModel, callbacks=None, objective="adaptor", **kwargs) -> AdaptorTrainer:
    options = {"global_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-2, "logging_strategy": "steps"}
    options |= {"logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    pairs = live_pairs()
    return AdaptorTrainer(
        model=model,
        args=AdaptorTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **(options | kwargs)),
        objective=objective,
        train_dataset=pairs,
        eval_dataset=pairs[:12],
        callbacks=callbacks,
    )


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers, those that are not saved too."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().clone() for name, value in named.items()}


def different(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


class Gradients(TrainerCallback):
    """Keeps the gradients of each optimizer step; zeros where there is none."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        zeros = {name: torch.zeros_like(value) for name, value in named.items() if value.grad is None}
        self.steps.append({name: value.grad.clone() for name, value in named.items() if name not in zeros} | zeros)


def main() -> None:
    """A run of one rank: gradients of all steps and the model that is saved go to a folder."""
    from adaptor_hf.towers import load_text_tower, load_vision_tower
    from adaptor_hf.training.interruption import leave_process_group

    torch.set_num_threads(1)
    dinov2, bert, output, changes = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    vision, text = load_vision_tower(str(dinov2)), load_text_tower(str(bert))
    kept = Gradients()
    # In float64, so that only what is wrong differs.
    model = live_model(vision, text, changes.pop("trains"), dropout=0.0).double()
    trainer = live_trainer(output, model, callbacks=[kept], optim="sgd", **changes)
    trainer.train()
    if trainer.is_world_process_zero():
        trainer.save_model()
        facts = {"world_size": trainer.args.world_size, "gradients": kept.steps, "weights": state_of(model)}
        torch.save(facts, output / "facts.pt")
    leave_process_group()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
