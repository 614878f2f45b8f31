"""What a run shows while it trains: one line an epoch, and on a terminal a bar in pairs."""

import time
from datetime import timedelta

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Log entries to show where the log is not written by epochs, their short names and their format.
SHOWN = {
    "loss": ("loss", ".4f"),
    "learning_rate": ("learning rate", ".2e"),
    "grad_norm": ("gradient norm", ".3g"),
    "eval_mean_recall": ("mean recall", ".4f"),
    "eval_image_to_text_median_rank": ("median rank", "g"),
    "eval_text_to_image_median_rank": ("and", "g"),
    "eval_loss": ("evaluation loss", ".4f"),
}
MEAN_RECALL = "eval_mean_recall"
NOT_OF_AN_EPOCH = {"learning_rate", "grad_norm", "epoch", "step", "num_input_tokens_seen"}
"""Of a training log entry what the line of an epoch leaves out; the loss and the objective's terms it has."""

LINES = 100
"""Of a kind (epochs, training, evaluation) in a log, at most; `trainer_state.json` has every entry."""


class ProgressLines(TrainerCallback):
    """
    In place of Trainer's bar in steps and its printed dictionaries: of each epoch its loss with the terms of the
    objective, mean recall on validation, the best so far and the time left; where training or evaluation is logged by
    steps, a line an entry. A terminal gets the same lines, above a bar with pairs a second.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.shown: dict[str, int] = {}
        self.of_training: dict[str, float] = {}

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
        logs = logs or {}
        if not state.is_world_process_zero:
            return
        evaluated = any(name.startswith("eval_") for name in logs)
        if (args.eval_strategy if evaluated else args.logging_strategy) == "epoch":
            if "loss" in logs:
                self.of_training = logs
            if evaluated or args.eval_strategy != "epoch":
                self._end_epoch(args, state, logs if evaluated else {})
            return
        values = [f"{label} {float(logs[name]):{form}}" for name, (label, form) in SHOWN.items() if name in logs]
        if values:
            kind = "loss" if "loss" in logs else "evaluation"
            line = f"step {state.global_step:,} of {state.max_steps:,}, epoch {state.epoch or 0:.4g}: "
            self._show(kind, line + ", ".join(values), state)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        # Of an epoch that was not evaluated, such as before eval_delay.
        if state.is_world_process_zero and self.of_training:
            self._end_epoch(args, state, {})

    def _end_epoch(self, args: TrainingArguments, state: TrainerState, evaluation: dict[str, float]) -> None:
        logs, self.of_training = self.of_training, {}
        values = [f"{name} {float(value):.4f}" for name, value in logs.items() if name not in NOT_OF_AN_EPOCH]
        if MEAN_RECALL in evaluation:
            values.append(f"validation mean recall {evaluation[MEAN_RECALL]:.3f}")
        name = args.metric_for_best_model or MEAN_RECALL
        name = name if name.startswith("eval_") else f"eval_{name}"
        # Trainer notes the best one only after this.
        entries = [entry for entry in state.log_history if name in entry]
        if entries and name in evaluation:
            best = (max if args.metric_for_best_model is None or args.greater_is_better else min)(
                entries, key=lambda entry: entry[name]
            )
            what = "" if name == MEAN_RECALL else f" {name.removeprefix('eval_').replace('_', ' ')}"
            values.append(f"best{what} {best[name]:.3f} (epoch {best.get('epoch', 0):.4g})")
        if values:
            line = f"epoch {state.epoch or 0:.4g}/{state.num_train_epochs:.4g}: "
            self._show("epoch", line + ", ".join(values), state)

    def _show(self, kind: str, line: str, state: TrainerState) -> None:
        if self.bar is not None:
            self.bar.write(line + self._rate(state))
        elif self._is_due(kind, state):
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
