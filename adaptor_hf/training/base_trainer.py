"""What every training by gradient shares: the best weights kept in memory, own evaluators, batches, and silence."""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import speed_metrics

Evaluator = Callable[[nn.Module, Dataset], dict[str, float]]
"""Metrics of a model on a split; the model is in evaluation mode and no gradients are recorded."""


class KeepBest(TrainerCallback):
    """
    Keeps the weights of the best evaluation in memory, and may end a training that gets no better.

    Kept are the weights of the model that training can change: parameters with gradients, and buffers. What an
    [`~adaptor_hf.objectives.Objective`] adds is not: once training has ended no model needs it, and a loss that is
    evaluated afterwards is by the objective as the last step left it. Checkpoints keep both.

    Args:
        metric (`str`): What is compared, without `eval_` before it.
        greater_is_better (`bool`): Whether more of it is better.
        tie_break (`str`, *optional*): Metric that decides between evaluations of equal `metric`; less is better.
        patience (`int`, *optional*): Evaluations in a row that were no better, after which training stops.
        min_delta (`float`): What `patience` takes for better; a smaller gain is kept all the same.

    Attributes:
        score (`float`): The best value, negated where less is better; `step` (`int`): the optimizer step it is from.
    """

    def __init__(
        self,
        metric: str,
        *,
        greater_is_better: bool = True,
        tie_break: str | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
    ):
        self.metric, self.sign, self.tie_break = metric, 1 if greater_is_better else -1, tie_break
        self.patience, self.min_delta, self.waited = patience, min_delta, 0
        self.best = self.reference = (-math.inf, -math.inf)
        self.step: int | None = None
        self.weights: dict[str, torch.Tensor] | None = None

    @property
    def score(self) -> float:
        return self.best[0]

    def on_evaluate(self, args, state, control, metrics, model=None, **kwargs):
        tie = -metrics[f"eval_{self.tie_break}"] if self.tie_break else 0.0
        reached = (self.sign * metrics[f"eval_{self.metric}"], tie)
        if reached > self.best or self.weights is None:
            self.best, self.step, self.weights = reached, state.global_step, changing_weights(model)
        self.waited += 1
        if reached > (self.reference[0] + self.min_delta, self.reference[1]):
            self.reference, self.waited = reached, 0
        if self.patience is not None and self.waited >= self.patience:
            control.should_training_stop = True

    def restore(self, model: nn.Module) -> None:
        """Give a model the weights that were kept; as they are if there was no evaluation."""
        if self.weights is not None:
            model.load_state_dict(self.weights, strict=False)


def changing_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies, on the CPU, of the parameters that get gradients and of all saved buffers."""
    changing = {name for name, value in model.named_parameters() if value.requires_grad}
    changing |= {name for name, _ in model.named_buffers()}
    weights = {name: value for name, value in model.state_dict().items() if name in changing}
    return {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}


class BaseTrainer(Trainer):
    """
    [`~transformers.Trainer`] as this package uses it, for whatever is trained by gradient.

    Args:
        model (`nn.Module`), args (`TrainingArguments`), kwargs: As for [`~transformers.Trainer`].
        loss_function (`Callable`, *optional*): `loss_function(model, batch)` is the loss, a scalar; by default the
            model's own.
        evaluators (`Sequence[Evaluator]`): Their metrics of the evaluation split, instead of Trainer's loop.
        eval_collator (`Callable`, *optional*): Collator of evaluation and prediction, where it differs from that of
            training.
        batch_sampler (`Iterable[torch.Tensor]`, *optional*): Rows of each step, `(B,)` int64, of a dataset whose
            `dataset[rows]` is a batch; each pass over it is an epoch. By default Trainer's order.
        keep_best ([`KeepBest`], *optional*): After training the model has the weights that it kept.
        quiet (`bool`): Log nothing: one of many trainings.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        loss_function: Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor] | None = None,
        evaluators: Sequence[Evaluator] = (),
        eval_collator: Callable | None = None,
        batch_sampler: Iterable[torch.Tensor] | None = None,
        keep_best: KeepBest | None = None,
        quiet: bool = False,
        **kwargs: Any,
    ):
        self.loss_function, self.evaluators, self.quiet = loss_function, tuple(evaluators), quiet
        self.eval_collator, self.batch_sampler, self.keep_best = eval_collator, batch_sampler, keep_best
        super().__init__(model=model, args=args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if keep_best is not None:
            self.add_callback(keep_best)

    def get_train_dataloader(self) -> DataLoader:
        if self.batch_sampler is None:
            return super().get_train_dataloader()
        # With a generator of its own it draws nothing from the one that dropout draws from.
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            sampler=self.batch_sampler,
            collate_fn=keep_batch,
            generator=torch.Generator(),
        )

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        with self._evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        with self._evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _evaluation_collator(self) -> Iterator[None]:
        of_training = self.data_collator
        self.data_collator = self.eval_collator or of_training
        try:
            yield
        finally:
            self.data_collator = of_training

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.loss_function is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.loss_function(model, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Not counted: it would walk all modules at every step."""
        return 0

    def _get_grad_norm(self, model, grad_norm=None):
        # Trainer clips to infinity to learn the norm of what it does not clip; nobody reads it here.
        return None if grad_norm is None and self.quiet else super()._get_grad_norm(model, grad_norm)

    def train(self, *args, **kwargs):
        """As `Trainer.train`; afterwards the model has the weights of `keep_best`, if there is one."""
        with _known_to_be_absent("lomo_optim"):
            output = super().train(*args, **kwargs)
        if self.keep_best is not None:
            self.keep_best.restore(self.model)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not self.quiet:
            super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        As `Trainer.evaluate`, with the evaluators where there are some.

        Returns:
            `dict[str, float]`: Metrics, each name with `metric_key_prefix` before it.

        Raises:
            FloatingPointError: if the loss is NaN or infinite.
            ValueError: in training, if the metric that the best model is chosen by is not among them.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            results = {}
            for name, part in dataset.items():
                results.update(self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}"))
            self._check_best_is_there(results, of_training=eval_dataset is None)
            return results
        if self.evaluators:
            metrics = self._evaluate_with_evaluators(dataset, metric_key_prefix)
        else:
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        loss = metrics.get(f"{metric_key_prefix}_loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss on validation is {loss} at step {self.state.global_step}, rate {self.args.learning_rate:g}. "
                "Use a lower rate, or float32."
            )
        self._check_best_is_there(metrics, of_training=eval_dataset is None)
        return metrics

    def _check_best_is_there(self, metrics: dict[str, float], of_training: bool) -> None:
        name = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if name and of_training and self.is_in_train and f"eval_{name}" not in metrics:
            speeds = ("runtime", "_per_second")
            given = [one.removeprefix("eval_") for one in metrics if one != "epoch" and not one.endswith(speeds)]
            # Trainer leaves it as it is where a training fails.
            self.is_in_train = False
            raise ValueError(
                f"metric_for_best_model {name!r}: evaluation gives no such metric. It gave {', '.join(given)}. Choose "
                "one of these."
            )

    @torch.no_grad()
    def _evaluate_with_evaluators(self, dataset: Dataset, prefix: str) -> dict[str, float]:
        start_time, was_training = time.time(), self.model.training
        self.model.eval()
        metrics = {f"{prefix}_{name}": value for name, value in self._measure(dataset).items()}
        self.model.train(was_training)
        metrics |= speed_metrics(prefix, start_time, num_samples=metrics.get(f"{prefix}_num_pairs") or len(dataset))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measure(self, dataset: Dataset) -> dict[str, float]:
        metrics = {}
        for evaluator in self.evaluators:
            metrics |= evaluator(self.model, dataset)
        return metrics


@contextmanager
def _known_to_be_absent(package: str) -> Iterator[None]:
    """Where a package is not installed nobody searches the disk for it: accelerate does, twice at every step."""
    absent = package not in sys.modules and find_spec(package) is None
    if absent:
        # How Python notes that there is no such module.
        sys.modules[package] = None
    try:
        yield
    finally:
        if absent:
            sys.modules.pop(package, None)


def keep_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collator of datasets whose `__getitems__` returns a finished batch."""
    return batch


def in_memory_arguments(device: Any, **kwargs: Any) -> TrainingArguments:
    """
    Arguments of a training that keeps its best weights in memory and leaves no file.

    Args:
        device (`str` or `torch.device`): `cpu`, or the accelerator.
        kwargs: As for [`~transformers.TrainingArguments`].
    """
    arguments = TrainingArguments(
        # Never written to, but Trainer makes the folder that it is given.
        output_dir=tempfile.gettempdir(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        # Else the loss of an evaluation would leave out what is NaN.
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        use_cpu=torch.device(device).type == "cpu",
        **kwargs,
    )
    if arguments.n_gpu > 1:
        # Trainer would multiply the batch of a protocol by the number of GPUs that it sees.
        arguments._n_gpu = 1
    return arguments


@contextmanager
def global_random_state_kept() -> Iterator[None]:
    """Random states of Python, NumPy and torch (CPU) are afterwards what they were: Trainer sets all their seeds."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


__all__ = [
    "BaseTrainer",
    "Evaluator",
    "KeepBest",
    "changing_weights",
    "global_random_state_kept",
    "in_memory_arguments",
    "keep_batch",
]
