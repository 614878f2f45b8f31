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


LINES = 100
"""Of a kind (epochs, training, evaluation) in a log, at most; `trainer_state.json` has every entry."""


class ProgressLines(TrainerCallback):
    """
    In place of Trainer's bar in steps and its printed dictionaries: of each epoch its loss, what evaluation gave, the
    best so far and the time left; where training or evaluation is logged by steps, a line an entry. A terminal gets the
    same lines, above a bar with pairs a second.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.shown: dict[str, int] = {}
        self.loss: float | None = None

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
        by_epoch = {True: args.eval_strategy, False: args.logging_strategy}[evaluated] == "epoch"
        if by_epoch and "loss" in logs and args.eval_strategy == "epoch":
            # The evaluation of this epoch follows.
            self.loss = float(logs["loss"])
            return
        if by_epoch and (evaluated or "loss" in logs):
            loss = logs.get("loss", self.loss)
            self.loss = None
            self._show("epoch", self._epoch(args, state, loss, logs), state)
            return
        values = [f"{label} {float(logs[name]):{form}}" for name, (label, form) in SHOWN.items() if name in logs]
        if values:
            kind = "loss" if "loss" in logs else "evaluation"
            line = f"step {state.global_step:,} of {state.max_steps:,}, epoch {state.epoch or 0:.4g}: "
            self._show(kind, line + ", ".join(values), state)

    def _epoch(self, args: TrainingArguments, state: TrainerState, loss: float | None, logs: dict) -> str:
        values = [] if loss is None else [f"loss {float(loss):.4f}"]
        if MEAN_RECALL in logs:
            values.append(f"validation mean recall {logs[MEAN_RECALL]:.3f}")
        chosen_by = args.metric_for_best_model or MEAN_RECALL
        chosen_by = chosen_by if chosen_by.startswith("eval_") else f"eval_{chosen_by}"
        if chosen_by in logs:
            # Trainer compares after this.
            choose = max if args.greater_is_better in (None, True) else min
            entries = [entry for entry in state.log_history if chosen_by in entry]
            best = choose(entries, key=lambda entry: entry[chosen_by])
            what = "" if chosen_by == MEAN_RECALL else f" {chosen_by.removeprefix('eval_').replace('_', ' ')}"
            values.append(f"best{what} {best[chosen_by]:.3f} (epoch {best['epoch']:.4g})")
        epochs = state.epoch or 0
        return f"epoch {epochs:.4g}/{state.num_train_epochs:.4g}: {', '.join(values)}"

    def _show(self, kind: str, line: str, state: TrainerState) -> None:
        if self.bar is not None:
            self.bar.write(line)
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
