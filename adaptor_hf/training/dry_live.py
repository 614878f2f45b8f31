"""A few optimizer steps of towers that train, measured on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..data.live_pairs import LivePairs
from ..embeddings.build import worker_count
from ..modeling_adaptor import AdaptorModel
from .arguments import AdaptorTrainingArguments
from .script_arguments import DataArguments, ModelArguments

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 8
"""Pairs that are run live."""


@dataclass(frozen=True)
class LiveCost:
    """
    What a pair costs where towers train.

    Args:
        reading (`float`): Seconds of one process to read, augment and tokenise it.
        computing (`float`): Seconds of its forward and backward pass and its share of the optimizer's step.
        workers (`int`): Processes that read beside the one that trains.
        pairs (`int`): Pairs that were measured.
        bytes (`float`, *optional*): Of GPU memory of its activations; None on the CPU, where nothing tells.
    """

    reading: float
    computing: float
    workers: int
    pairs: int
    bytes: float | None

    @property
    def seconds(self) -> float:
        """Of a pair: reading and computing beside each other, where there are workers."""
        if not self.workers:
            return self.reading + self.computing
        return max(self.computing, self.reading / self.workers)

    def describe(self) -> str:
        """A line on what was measured, and what was not."""
        beside = (
            f"in {self.workers} worker{'s' * (self.workers > 1)}" if self.workers else "before it, without a worker"
        )
        return (
            f"live: a pair takes {1000 * self.computing:.0f} ms to train on and {1000 * self.reading:.0f} ms to read, "
            f"{beside}; measured on {self.pairs} pairs; validation after each epoch, views and --grad_cache_batch_size "
            "come on top"
        )


def measure_live(
    model: AdaptorModel,
    pairs: Dataset,
    rows: Sequence[int],
    data: DataArguments,
    model_arguments: ModelArguments,
    training: AdaptorTrainingArguments,
) -> LiveCost:
    """
    Read a few rows and take three optimizer steps on them, of rate 0.

    Args:
        model (`AdaptorModel`): With the towers that train, set to train.
        pairs (`datasets.Dataset`): The table.
        rows (`Sequence[int]`): Some with a text.
        data, model_arguments, training: The run's arguments.

    Raises:
        OSError, ValueError: none of the first rows can be read.
    """
    vision, text = model.vision_model, model.text_model
    live = LivePairs(
        pairs.select(rows[: 4 * ROWS]),
        None if vision is None else vision.processor,
        None if text is None else text.processor,
        recipe=model_arguments.image_recipe,
        sentence_recipe=model_arguments.sentence_recipe,
        max_length=data.max_text_length,
    )
    examples, reading = _read_some(live)
    batch = {
        name: torch.randn(len(examples), width, device=model.device)
        for name, tower, width in (
            ("image_embeds", vision, model.config.vision_hidden_size),
            ("text_embeds", text, model.config.text_hidden_size),
        )
        if tower is None
    }
    if vision is not None:
        batch["pixel_values"] = torch.stack([example["pixel_values"] for example in examples]).to(model.device)
    if text is not None:
        texts = [{name: example[name] for name in ("input_ids", "attention_mask")} for example in examples]
        batch |= text.processor.pad(texts, return_tensors="pt").to(model.device)
    computing, peak = _shortest_step(model, batch, training)
    workers = training.dataloader_num_workers or worker_count(model.device.type == "cuda")
    return LiveCost(reading, computing / len(examples), workers, len(examples), peak and peak / len(examples))


def _read_some(live: LivePairs) -> tuple[list[dict[str, torch.Tensor]], float]:
    """The first rows that can be read, and seconds of one."""
    examples: list[dict[str, torch.Tensor]] = []
    seconds = 0.0
    for row in range(len(live)):
        start = time.perf_counter()
        try:
            examples.append(live[row])
        except (OSError, ValueError) as error:
            # The build of the cache lists it, and leaves it out.
            last = error
            continue
        seconds += time.perf_counter() - start
        if len(examples) == ROWS:
            break
    if not examples:
        raise last
    return examples, seconds / len(examples)


def _shortest_step(
    model: AdaptorModel, batch: dict[str, torch.Tensor], training: AdaptorTrainingArguments, repeats: int = 3
) -> tuple[float, float | None]:
    """Seconds of the shortest of a few steps, and on a GPU the bytes that its activations took."""
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    on_gpu, dtype = model.device.type == "cuda", torch.bfloat16 if training.bf16 else torch.float16
    precision = torch.autocast(model.device.type, dtype) if training.bf16 or training.fp16 else nullcontext()
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    shortest, bytes_ = math.inf, None
    for _ in range(repeats):
        start, before = time.perf_counter(), torch.cuda.memory_allocated() if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with precision:
            loss = model(**batch, return_loss=True).loss
        loss.backward()
        if on_gpu:
            bytes_ = max(0, torch.cuda.max_memory_allocated() - before)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest, bytes_


__all__ = ["LiveCost", "measure_live"]
