"""What a run shows while it trains: a bar in pairs on a terminal, one line a log entry elsewhere."""

import time
from datetime import timedelta

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Log entries to show, their short names and their format.
SHOWN = {
    "loss": ("loss", ".4f"),
    "learning_rate": ("learning rate", ".2e"),
    "grad_norm": ("gradient norm", ".3g"),
    "eval_mean_recall": ("mean recall", ".4f"),
    "eval_image_to_text_median_rank": ("median rank", "g"),
    "eval_text_to_image_median_rank": ("and", "g"),
    "eval_loss": ("evaluation loss", ".4f"),
}


LINES = 100
"""Of a kind (training, evaluation) in a log, at most; `trainer_state.json` has every entry."""


class ProgressLines(TrainerCallback):
    """Pairs a second and time left; in place of Trainer's bar in steps and its printed dictionaries."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.shown: dict[str, int] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.pairs_a_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.first_step, self.start_time = state.global_step, time.monotonic()
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(
                total=state.max_steps * self.pairs_a_step,
                initial=state.global_step * self.pairs_a_step,
                unit=" pairs",
                unit_scale=True,
                dynamic_ncols=True,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.bar is not None:
            self.bar.update(self.pairs_a_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs):
        values = [
            f"{label} {float(logs[name]):{form}}" for name, (label, form) in SHOWN.items() if name in (logs or {})
        ]
        if not values or not state.is_world_process_zero:
            return
        line = f"step {state.global_step:,} of {state.max_steps:,}, epoch {state.epoch or 0:.4g}: {', '.join(values)}"
        if self.bar is not None:
            self.bar.write(line)
        elif self._is_due("loss" if "loss" in logs else "evaluation", state):
            print(line + self._rate(state), flush=True)

    def _is_due(self, kind: str, state: TrainerState) -> bool:
        last = self.shown.get(kind)
        due = last is None or state.global_step >= min(last + state.max_steps / LINES, state.max_steps)
        if due:
            self.shown[kind] = state.global_step
        return due

    def _rate(self, state: TrainerState) -> str:
        steps = state.global_step - getattr(self, "first_step", state.global_step)
        if not steps:
            return ""
        rate = steps / max(time.monotonic() - self.start_time, 1e-9)
        left = timedelta(seconds=round((state.max_steps - state.global_step) / rate))
        return f" ({rate * self.pairs_a_step:,.0f} pairs/s, {left} left)"

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


__all__ = ["ProgressLines"]
