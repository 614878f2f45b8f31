"""Measure a few rows on this machine and say what the whole run would take."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.stored_arguments import kept_of_images, kept_of_texts
from ..embeddings.estimate import ROWS, TEXTS, Estimate, estimate_cache, first_rows_of_texts, gigabytes
from ..embeddings.extract import columns_of
from ..embeddings.place import place_of_cache
from ..embeddings.sequences import grid_of
from ..modeling_adaptor import AdaptorModel
from ..objectives import known_objectives
from .arguments import AdaptorTrainingArguments
from .dry_live import measure_live
from .needs import needs_of_aligner
from .pair_cache import embedding_options, loaded_towers
from .pairs import load_training_pairs
from .plan import pairs_of, parts_of_table
from .recipe_choice import choose_recipe
from .script_arguments import DataArguments, ModelArguments, RunArguments
from .summary import number_of_steps

if TYPE_CHECKING:
    from datasets import Dataset

# Measured: bytes of activations that one pair keeps for the backward pass, in float32 and width 768.
ACTIVATION_BYTES_A_PAIR = 200_000


def dry_run(
    words: Sequence[str] | None,
    data: DataArguments,
    model_arguments: ModelArguments,
    run: RunArguments,
    arguments: AdaptorTrainingArguments,
) -> str:
    """The recipe that a run with these options takes, and [`estimate_run`]."""
    pairs = load_training_pairs(data, run).dataset
    recipe, model_arguments = choose_recipe(words, pairs_of(parts_of_table(pairs)), model_arguments, arguments)
    return f"{recipe.describe()}\n{estimate_run(pairs, data, model_arguments, arguments)}"


def estimate_run(
    pairs: "Dataset", data: DataArguments, model_arguments: ModelArguments, arguments: AdaptorTrainingArguments
) -> str:
    """
    Embed up to 32 rows with the real towers and take three optimizer steps of the real batch, then extrapolate.

    Returns:
        `str`: Hours, disk, RAM and GPU memory for extraction and for training, and what to change if that is too much.

    Raises:
        ValueError: if no row has a text.
    """
    from ..towers.coverage import describe_coverage, text_coverage

    rows = first_rows_of_texts(pairs)
    device = arguments.device
    start = time.perf_counter()
    vision, text_tower = loaded_towers(data, model_arguments)
    loading = time.perf_counter() - start
    place = place_of_cache(arguments.output_dir, data.cache_dir)
    stored = estimate_storage(pairs, data, vision, text_tower, place, device)
    tower_bytes = sum(p.numel() * p.element_size() for tower in (vision, text_tower) for p in tower.parameters())
    model = AdaptorModel(
        model_arguments.config(vision_hidden_size=vision.hidden_size, text_hidden_size=text_tower.hidden_size)
    ).to(device)
    # Without tokens training reads the pooled vectors alone.
    pools = bool(needs_of_aligner(model.config))
    lengths, read = (token_counts(stored), stored.bytes) if pools else ((0, 0), stored.pooled_bytes(stored.dtype))
    texts = pairs["text"][:]
    training_pairs = sum(
        split == "train" and text is not None for split, text in zip(pairs["split"][:], texts, strict=True)
    )
    batch = min(arguments.per_device_train_batch_size, max(2, training_pairs))
    step = seconds_a_step(model, batch, lengths=lengths)
    steps = number_of_steps(arguments, training_pairs)
    activations = batch * ACTIVATION_BYTES_A_PAIR * (model.config.hidden_size / 768) * (1 + sum(lengths) / 2)
    live = None
    if trainable := model_arguments.trainable:
        model.attach_towers(vision if "vision" in trainable else None, text_tower if "text" in trainable else None)
        named = {f"{kind}_model": value for kind, value in trainable.items()}
        model.set_trainable_towers(**named, lora_rank=model_arguments.lora_rank)
        live = measure_live(model, pairs, rows, data, model_arguments, arguments)
        step = batch * live.seconds
        activations = min(batch, arguments.grad_cache_batch_size or batch) * (live.bytes or 0)
    # Weights, gradients and AdamW's two means of what trains; of what is frozen the weights.
    parameter_bytes = 12 * model.num_parameters(only_trainable=True) + 4 * model.num_parameters()

    sample = [texts[row] for row in rows[:TEXTS]]
    length = min(data.max_text_length, text_tower.spec["max_length"] or data.max_text_length)
    coverage = text_coverage(text_tower.processor, sample, length)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lines = [
        f"Dry run on {name}, {min(ROWS, len(pairs))} rows:",
        f"  extraction: {stored.seconds / 3600:.2f} h ({1 / stored.images.asked_seconds:.1f} images/s, "
        f"{1 / stored.texts.asked_seconds:.1f} texts/s in one process), {gigabytes(stored.bytes)} of disk, "
        f"{gigabytes(tower_bytes)} of weights; towers load in {loading:.0f} s",
        f"  training: {steps * step / 3600:.2f} h ({steps:,} steps of {batch:,} pairs a process, {step * 1000:.0f} ms "
        f"each), {gigabytes(read)} of RAM at most for the cache (memory-mapped), "
        f"{gigabytes(parameter_bytes + activations)} of {'GPU ' if device.type == 'cuda' else ''}memory for weights, "
        + ("optimizer and activations" if live is None or live.bytes else "and optimizer; activations not measured"),
        *([] if live is None else [f"  {live.describe()}"]),
        f"What could be kept of {stored.images.rows:,} images and {stored.texts.rows:,} texts:",
        stored.table(),
        f"  texts: {describe_coverage(Path(model_arguments.text_tower).name, coverage, length)}",
    ]
    made = model_arguments.objective.made
    if live is not None or known_objectives().get(made.name) is not made:
        lines.append(
            f"  Steps are those of the model's own loss: what the objective {made.__name__} adds is not measured."
        )
    if coverage.unknown > 0.01 or coverage.tokens_per_word > 2.5:
        lines.append(
            "  The text tower seems not to know this language or notation: a multilingual or national one may."
        )
    if stored.seconds > 6 * 3600:
        lines.append("  To shorten extraction: a smaller tower (dinov2-s, lite0), a GPU, or several processes.")
    if steps * step > 6 * 3600:
        lines.append("  To shorten training: fewer --num_train_epochs, a smaller --train_fraction, or a GPU.")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if parameter_bytes + activations > 0.9 * free:
            lines.append(f"  Too much for this GPU ({gigabytes(free)} free): lower --global_batch_size.")
    return "\n".join(lines)


def token_counts(stored: Estimate) -> tuple[int, int]:
    """Tokens of an image, and of a text on average, that a cache keeps: both are asked for."""
    column = next(one for one in columns_of(stored.images.tower, stored.asked[0], stored.dtype)
                  if one.name == "image_tokens")  # fmt: skip
    return math.prod(grid_of(column)), math.ceil(stored.texts.elements["text_tokens"])


def seconds_a_step(model: AdaptorModel, batch: int, repeats: int = 3, lengths: tuple[int, int] = (0, 0)) -> float:
    """Shortest of a few optimizer steps on random embeddings, or sequences of so many tokens an image and a text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    widths = (model.config.vision_hidden_size, model.config.text_hidden_size)
    image, text = (
        torch.randn(batch, 1 + count, width, device=model.device) for count, width in zip(lengths, widths, strict=True)
    )
    model.train()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model(image_embeds=image, text_embeds=text, return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.append(time.perf_counter() - start)
    return min(times)


def estimate_storage(
    pairs: "Dataset", data: DataArguments, vision_tower: Any, text_tower: Any, place: Path, device: Any
) -> Estimate:
    """What a cache of these pairs would take, by the options and by each choice of what could be kept."""
    kept = {"images": kept_of_images(data), "texts": kept_of_texts(data)}
    beside = embedding_options(data)
    plain = {name: beside[name] for name in ("batch_size", "max_text_length", "dtype")}
    return estimate_cache(pairs, vision_tower, text_tower, place, device=device, **kept, **plain)


__all__ = ["dry_run", "estimate_run", "estimate_storage", "seconds_a_step"]
