"""Learning rates at the end of the reference's schedules, the weight decay of Trainer, and a number in a report."""

import math
import re
import tempfile

import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from transformers import Trainer, get_linear_schedule_with_warmup

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

PAIRS, BATCH, EPOCHS = 277_110, 1024, 50


def final_share_of_peak(num_gpus: int) -> float:
    """Linear schedule as the reference drives it: sized for one GPU, stepped by hand each step and once each epoch."""
    planned = math.ceil(PAIRS / BATCH) * EPOCHS
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.02 * planned), planned)
    return schedule.lr_lambdas[0]((math.ceil(PAIRS / num_gpus / BATCH) + 1) * EPOCHS)


def least_head_learning_rate(steps_an_epoch: int = 100, epochs: int = 50) -> float:
    """Classification head: a cosine period of 0.4 of all training *steps*, stepped once an *epoch*."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = CosineAnnealingWarmRestarts(optimizer, int(0.4 * steps_an_epoch * epochs), eta_min=1e-8)
    schedule.step(epochs)
    return schedule.get_last_lr()[0]


def undecayed(trainer_class: type[Trainer]) -> int:
    model = AdaptorModel(AdaptorConfig())
    with tempfile.TemporaryDirectory() as folder:
        arguments = AdaptorTrainingArguments(folder, use_cpu=True, eval_strategy="no", load_best_model_at_end=False)
        decayed = set(trainer_class(model, arguments).get_decay_parameter_names(model))
    return sum(value.numel() for name, value in model.named_parameters() if name not in decayed)


def reference_text(report: str) -> str:
    """Split at "1." and at full stops, keep ASCII words in lower case, drop pieces of one word."""
    pieces = re.split(r"[0-9]+\.|\.", report.lower())
    words = [[word.encode("ascii", "ignore").decode() for word in re.findall(r"\w+", piece)] for piece in pieces]
    return " ".join(word for piece in words if len(piece) > 1 for word in piece if word)


def main() -> dict[str, object]:
    results = {
        "learning rate at the end, 1 GPU": final_share_of_peak(1),
        "learning rate at the end, 2 GPUs": final_share_of_peak(2),
        "least learning rate of a head": least_head_learning_rate(),
        "parameters that Trainer does not decay": undecayed(Trainer),
        "parameters that AdaptorTrainer does not decay": undecayed(AdaptorTrainer),
        "text": reference_text("1. Nodule of 1.5 cm. Unchanged. No effusion."),
    }
    print("\n".join(f"{name}: {value}" for name, value in results.items()))
    return results


if __name__ == "__main__":
    main()
