"""What a run prints before it starts, and what the machine lacks."""

import math
import platform
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.reading import Reading
from ..modeling_adaptor import AdaptorModel
from ..objectives import Objective
from ..objectives.positives import POSITIVE_COLUMN
from ..pretrained_adaptor import TOWER_NAMES
from .arguments import AdaptorTrainingArguments

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache
    from .trainer import AdaptorTrainer

# Parameters that a single token a modality does not reach, and of those the ones that only tokens themselves reach.
OF_SEQUENCES = re.compile(r"shared_encoder\..*\.(q|k)_proj\.")
OF_TOKENS = re.compile(r"_token_projection\.")


def parameter_counts(model: AdaptorModel, tokens: int = 1) -> dict[str, int]:
    """
    Args:
        model (`AdaptorModel`): Counted without its towers.
        tokens (`int`, defaults to 1): Tokens a modality that the objective reads. With one, queries and keys of the
            shared layers get no gradient where the input is one embedding, nor do the heads of tokens.

    Returns:
        `dict[str, int]`: `trainable`, those of them `receiving_gradient`, and `head` (none here: heads are added for
        downstream tasks).
    """
    of_towers = tuple(f"{name}." for name in TOWER_NAMES)
    trainable = {
        name: p.numel() for name, p in model.named_parameters() if p.requires_grad and not name.startswith(of_towers)
    }
    pools = model.config.attention_pooling_heads is not None
    unused = sum(
        count
        for name, count in trainable.items()
        if tokens == 1 and (OF_TOKENS.search(name) or (OF_SEQUENCES.search(name) and not pools))
    )
    total = sum(trainable.values())
    return {"trainable": total, "receiving_gradient": total - unused, "head": 0}


def fitted_batch(arguments: AdaptorTrainingArguments, num_pairs: int) -> int:
    """Pairs a step on each process: those of the arguments, or of all the data where that is less."""
    if arguments.global_batch_size <= num_pairs:
        return arguments.per_device_train_batch_size
    return num_pairs // arguments.world_size


def fit_batch_to_data(arguments: AdaptorTrainingArguments, num_pairs: int) -> None:
    """Lower a global batch that is larger than the data to all of it, and say so."""
    per_device = fitted_batch(arguments, num_pairs)
    if per_device == arguments.per_device_train_batch_size:
        return
    if per_device < 1:
        raise ValueError(f"{num_pairs} training pairs cannot be shared by {arguments.world_size} processes. Use fewer.")
    warnings.warn(
        f"The global batch ({arguments.global_batch_size}) is larger than the training data ({num_pairs} pairs): "
        f"using batches of {per_device * arguments.world_size}.",
        stacklevel=2,
    )
    arguments.per_device_train_batch_size = per_device
    arguments.global_batch_size = per_device * arguments.world_size


def number_of_steps(arguments: AdaptorTrainingArguments, num_pairs: int) -> int:
    """Optimizer steps of the run; a batch larger than the data counts as all of it."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = num_pairs / max(1, fitted_batch(arguments, num_pairs) * arguments.world_size)
    batches = math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)
    return math.ceil(max(1, math.ceil(batches / arguments.gradient_accumulation_steps)) * arguments.num_train_epochs)


def describe_steps(arguments: AdaptorTrainingArguments, num_pairs: int) -> str:
    """Number of optimizer steps and what each is of, in words."""
    device = fitted_batch(arguments, num_pairs)
    if arguments.max_steps > 0:
        given = "given by max_steps"
    else:
        given = f"{arguments.num_train_epochs:g} epoch{'s' * (arguments.num_train_epochs != 1)}"
    accumulated = arguments.gradient_accumulation_steps
    of = "" if accumulated == 1 else f"{accumulated:,} batches of "
    processes = f" ({arguments.world_size} processes x {device:,})" if arguments.world_size > 1 else ""
    return (
        f"{number_of_steps(arguments, num_pairs):,} ({given}), each of {of}{device * arguments.world_size:,} pairs"
        f"{processes}, peak learning rate {arguments.learning_rate:g}"
    )


def describe_run(
    trainer: "AdaptorTrainer",
    cache: "EmbeddingCache",
    views: dict[str, "EmbeddingCache"],
    planned: Mapping[str, int] | None = None,
) -> str:
    """
    The lines a run prints before it starts: what the plan could not know, and what came otherwise.

    Args:
        trainer (`AdaptorTrainer`): With the model and the objective, which is set up.
        cache (`EmbeddingCache`): The whole cache.
        views (`dict[str, EmbeddingCache]`): Its splits.
        planned (`Mapping`, *optional*): Pairs of each split that the plan has named. Where the splits have as many,
            pairs and steps are not said again.
    """
    train, arguments = views["train"], trainer.args
    pairs = {name: len(view) for name, view in views.items()}
    found = []
    if planned is None or dict(planned) != pairs:
        found = [
            f"Pairs: {', '.join(f'{count:,} {name}' for name, count in pairs.items())}",
            f"Steps: {describe_steps(arguments, len(train))}",
        ]
    lines = [
        f"Parameters: {_describe_parameters(trainer)}",
        *found,
        f"Left out: {cache.num_image_only:,} rows without text and {len(cache.excluded):,} faulty rows",
        *([describe_sources(train, arguments)] if cache.source_names else []),
        *_describe_texts(train, getattr(trainer.objective, "positives", None)),
        *([f"Images are read as: {reading}"] if (reading := Reading.of_spec(cache.vision_spec).label) else []),
        *(f"Cache: {member.path}" for member in cache.members),
    ]
    return "\n".join(lines)


def _describe_parameters(trainer: "AdaptorTrainer") -> str:
    tokens = 2 if {"image_tokens", "text_tokens"} & set(trainer.objective.needs) else 1
    counts = parameter_counts(trainer.model, tokens)
    described = f"{counts['trainable']:,} trainable"
    if counts["receiving_gradient"] < counts["trainable"]:
        described += (
            f", {counts['receiving_gradient']:,} of them receive a gradient (with one token a side, queries and keys "
            "do not)"
        )
    for kind in ("vision", "text"):
        tower = getattr(trainer.model, f"{kind}_model")
        if tower is not None:
            own = sum(value.numel() for value in tower.parameters() if value.requires_grad)
            described += f"; + {own:,} of the {kind} tower"
    own = own_parameters(trainer.objective)
    return described + (f"; + {own:,} of the objective" if own else "")


def own_parameters(objective: Objective) -> int:
    """Numbers that are trained with the model and are no part of it."""
    return sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)


def _describe_texts(train: "EmbeddingCache", positives: str | None) -> list[str]:
    """The line on texts that are there several times, for an objective that asks which rows are no negatives."""
    if positives not in POSITIVE_COLUMN:
        return []
    _, text, copies = np.unique(train.text_rows, return_inverse=True, return_counts=True)
    repeated = (copies[text] > 1).mean()
    return [
        f"Texts: {train.num_texts:,} distinct in training; {repeated:.1%} of rows share their text with another "
        f"(positives: {positives})"
    ]


def describe_sources(train: "EmbeddingCache", arguments: AdaptorTrainingArguments) -> str:
    """Of several sources the training pairs of each, and its share of what is shown."""
    counts = train.sources
    weights = arguments.dataset_weights or [counts.get(name, 0) for name in train.source_names]
    shares = [weight / math.fsum(weights) for weight in weights]
    described = []
    for name, share in zip(train.source_names, shares, strict=True):
        count = counts.get(name, 0)
        times = share * len(train) / max(count, 1)
        again = f", each pair {times:.1f} times" if times > 1.05 else ""
        described.append(f"{name} {count:,} ({share:.1%} of an epoch{again})")
    listed = ", ".join(described)
    how = "each batch of one source" if arguments.source_batches == "by_source" else "mixed in batches"
    return f"Sources: {listed}; {how}"


def environment_warnings() -> list[str]:
    """What is wrong between this torch build and this machine's GPU, in words that say what to install."""
    found = []
    if torch.version.cuda and not torch.cuda.is_available() and platform.system() == "Linux":
        # `is_available` says why not in a warning, once a process, which may have been before. This says it each time.
        try:
            torch.cuda.init()
            reason = ""
        except RuntimeError as error:
            reason = str(error).lower()
        if "driver" in reason and "too old" in reason:
            found.append(
                f"The NVIDIA driver is older than this torch build needs (CUDA {torch.version.cuda}), so the run uses "
                "the CPU. Update the driver, or install a torch build for your CUDA version: see the README's table."
            )
    elif torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        built = torch.cuda.get_arch_list()
        if built and not any(runs_on(name, major, minor) for name in built):
            found.append(
                f"This torch build has no code for {torch.cuda.get_device_name()} (compute capability {major}.{minor}; "
                f"it has {', '.join(built)}). Install another torch build: see the README's table."
            )
    return found


def runs_on(architecture: str, major: int, minor: int) -> bool:
    """
    Whether code for an architecture of `torch.cuda.get_arch_list()` runs on a GPU of this compute capability: binary
    code (sm_XY) on the same major version from its own minor one on, intermediate code (compute_XY) on all later ones.
    """
    kind, _, digits = architecture.partition("_")
    digits = digits.rstrip("af")
    if not digits.isdigit():
        return False
    built = int(digits[:-1]), int(digits[-1])
    return built <= (major, minor) if kind == "compute" else built[0] == major and built[1] <= minor


__all__ = [
    "describe_run",
    "describe_sources",
    "describe_steps",
    "environment_warnings",
    "fit_batch_to_data",
    "fitted_batch",
    "number_of_steps",
    "own_parameters",
    "parameter_counts",
]
