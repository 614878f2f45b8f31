"""Measure a few rows on this machine and say what the whole run would take."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..modeling_adaptor import AdaptorModel
from .arguments import AdaptorTrainingArguments
from .script_arguments import DataArguments, ModelArguments
from .summary import number_of_steps

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 32
# Tokenizing is cheap, so that shares of rare events can be seen.
COVERAGE_TEXTS = 2000
# Measured: bytes of activations that one pair keeps for the backward pass, in float32 and width 768.
ACTIVATION_BYTES_A_PAIR = 200_000


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
    from ..embeddings import build_cache
    from ..towers import load_text_tower, load_vision_tower
    from ..towers.coverage import describe_coverage, text_coverage

    texts = pairs["text"][:]
    first_rows = {text: row for row, text in reversed(list(enumerate(texts))) if text is not None}
    if not first_rows:
        raise ValueError(f"None of the {len(pairs)} rows has a text: nothing to train on. Check the text column.")
    device = arguments.device
    start = time.perf_counter()
    vision = load_vision_tower(model_arguments.vision_tower)
    text_tower = load_text_tower(model_arguments.text_tower)
    loading = time.perf_counter() - start

    num_images, num_texts = len(pairs), len(first_rows)
    seconds = {}
    for modality, towers, rows in (
        ("images", {"vision_tower": vision}, range(num_images)),
        ("texts", {"text_tower": text_tower}, sorted(first_rows.values())),
    ):
        sample = pairs.select(rows[:ROWS])
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            build_cache(
                sample,
                **towers,
                cache_dir=folder,
                batch_size=data.extraction_batch_size,
                max_text_length=data.max_text_length,
                device=device,
                num_workers=0,
                max_fault_fraction=1.0,
            )
            seconds[modality] = (time.perf_counter() - start) / len(sample)
    tower_bytes = sum(p.numel() * p.element_size() for tower in (vision, text_tower) for p in tower.parameters())
    extraction = num_images * seconds["images"] + num_texts * seconds["texts"]
    disk = 2 * (num_images * vision.hidden_size + num_texts * text_tower.hidden_size)

    model = AdaptorModel(
        model_arguments.config(vision_hidden_size=vision.hidden_size, text_hidden_size=text_tower.hidden_size)
    ).to(device)
    training_pairs = sum(
        split == "train" and text is not None for split, text in zip(pairs["split"][:], texts, strict=True)
    )
    batch = min(arguments.per_device_train_batch_size, max(2, training_pairs))
    step = seconds_a_step(model, batch)
    steps = number_of_steps(arguments, training_pairs)
    parameter_bytes = 16 * model.num_parameters()
    activations = batch * ACTIVATION_BYTES_A_PAIR * (model.config.hidden_size / 768)

    sample = [texts[row] for row in sorted(first_rows.values())[:COVERAGE_TEXTS]]
    length = min(data.max_text_length, text_tower.spec["max_length"] or data.max_text_length)
    coverage = text_coverage(text_tower.processor, sample, length)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lines = [
        f"Dry run on {name}, {min(ROWS, num_images)} rows:",
        f"  extraction: {extraction / 3600:.2f} h ({1 / seconds['images']:.1f} images/s, {1 / seconds['texts']:.1f} "
        f"texts/s in one process), {gigabytes(disk)} of disk, {gigabytes(tower_bytes)} of weights; towers load in "
        f"{loading:.0f} s",
        f"  training: {steps * step / 3600:.2f} h ({steps:,} steps of {batch:,} pairs a process, {step * 1000:.0f} ms "
        f"each), {gigabytes(disk)} of RAM at most for the cache (memory-mapped), "
        f"{gigabytes(parameter_bytes + activations)} of {'GPU ' if device.type == 'cuda' else ''}memory for weights, "
        "optimizer and activations",
        f"  texts: {describe_coverage(Path(model_arguments.text_tower).name, coverage, length)}",
    ]
    if coverage.unknown > 0.01 or coverage.tokens_per_word > 2.5:
        lines.append(
            "  The text tower seems not to know this language or notation: a multilingual or national one may."
        )
    if extraction > 6 * 3600:
        lines.append("  To shorten extraction: a smaller tower (dinov2-s, lite0), a GPU, or several processes.")
    if steps * step > 6 * 3600:
        lines.append("  To shorten training: fewer --num_train_epochs, a smaller --train_fraction, or a GPU.")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if parameter_bytes + activations > 0.9 * free:
            lines.append(f"  Too much for this GPU ({gigabytes(free)} free): lower --global_batch_size.")
    return "\n".join(lines)


def seconds_a_step(model: AdaptorModel, batch: int, repeats: int = 3) -> float:
    """Shortest of a few optimizer steps on random embeddings."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    image = torch.randn(batch, model.config.vision_hidden_size, device=model.device)
    text = torch.randn(batch, model.config.text_hidden_size, device=model.device)
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


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


__all__ = ["estimate_run", "seconds_a_step"]
