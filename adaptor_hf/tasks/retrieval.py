"""Retrieval between the images and reports of a test part, both ways; equal texts are all positives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling_adaptor import AdaptorModel
from ..training.systems import System
from .arguments import DownstreamArguments
from .controls import systems_of
from .features import BATCH_ROWS
from .loading import LoadedParts, cache_dir_of, load_adaptor, load_checkpoint_text_tower, load_parts, vision_tower_of
from .overlap import overlap_fields
from .provenance import input_size, spec_of_cache, tower_name, tower_saw
from .runs import RunList, finish_run
from .summary import summarize
from .targets import pairs_hash

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.training_rows import Seen
    from ..embeddings import EmbeddingCache

PRECISION_AT = (1, 5, 10)


def embed_test_pairs(
    dataset: Dataset,
    vision_tower: Any,
    text_tower: Any,
    cache_dir: str | os.PathLike,
    *,
    batch_size: int | None = None,
    device: Any = None,
    check: str = "touched",
) -> EmbeddingCache:
    """The rows of a data set that have image and text, as a view of an embedding cache."""
    from ..embeddings import build_cache

    names = [name for name in ("image", "text", "image_id", "patient_id", "study_id") if name in dataset.column_names]
    if "text" not in names:
        raise ValueError("Retrieval needs reports: name their column with --text_column.")
    cache = build_cache(
        dataset.select_columns(names).add_column("source_row", np.arange(len(dataset))),
        vision_tower, text_tower, cache_dir, batch_size=batch_size, device=device, check=check, latest=False,
    ).paired()  # fmt: skip
    if cache.num_texts < 2:
        raise ValueError(
            f"At least two different reports are needed, the test part has {cache.num_texts}. Name their column with "
            "--text_column."
        )
    return cache


@torch.no_grad()
def run_retrieval(
    pairs: EmbeddingCache,
    systems: Sequence[System],
    output_dir: str | os.PathLike,
    *,
    dataset: str,
    split_hash: str,
    seen: Mapping[str, Seen] | None = None,
    classes: np.ndarray | None = None,
    towers: Sequence[Any] = (None, None),
    num_resamples: int = 1000,
) -> RunList:
    """
    Recall, median rank and reciprocal rank in both directions for each system, and precision by class if there is one.

    Args:
        pairs (`EmbeddingCache`): From `embed_test_pairs`.
        systems (`Sequence[System]`): With a model; others have no common space and are left out.
        output_dir (`str` or `PathLike`): Each run is a folder under `runs`.
        dataset, split_hash (`str`), seen (`Mapping[str, Seen]`, *optional*): For results.
        classes (`np.ndarray` of shape `(len(pairs),)`, *optional*): A class a row, int64; a text has its first row's.
        towers (`Sequence`): What the pairs were embedded with, of images and of texts, where that is a loaded tower:
            results name one that was trained by its weights.
        num_resamples (`int`, defaults to 1000): Of the bootstrap over patients.
    """
    from ..evaluation import precision_at_k, retrieval_metrics, retrieval_predictions
    from ..evaluation.retrieval import first_occurrences

    found = RunList()
    text_ids = torch.from_numpy(pairs.text_rows)
    table, targets = pairs.pairs, pairs_hash(pairs, classes)
    vision, text = (spec_of_cache(*pair) for pair in zip((pairs.vision_spec, pairs.text_spec), towers, strict=True))
    embeds = {"image_embeds": pairs.image_embeddings(), "text_embeds": pairs.text_embeddings()}
    for system in (system for system in systems if system.model is not None):
        fields = (
            system.fields()
            | {
                "vision_tower": tower_name(vision),
                "text_tower": tower_name(text),
                "task": "retrieval",
                "dataset": dataset,
                "split_hash": split_hash,
                "protocol": "retrieval",
                "input_size": input_size(vision),
                "seed": 0,
                "targets_hash": targets,
                "tower_saw_dataset": tower_saw(vision, dataset),
            }
            | overlap_fields(seen, system.key)
        )

        def score(model=system.model) -> Any:
            image = _features(model, "image", embeds["image_embeds"])
            text = _features(model, "text", embeds["text_embeds"])
            _, ranks = retrieval_metrics(image, text, text_ids)
            precisions = same_class = None
            if classes is not None:
                first = first_occurrences(text_ids)[1]
                kinds = torch.from_numpy(np.asarray(classes, np.int64)).unique(return_inverse=True)[1]
                ways = {"image_to_text": (image, text[first], kinds, kinds[first])}
                ways["text_to_image"] = (text[first], image, kinds[first], kinds)
                precisions = {
                    way: precision_at_k(*sides, [k for k in PRECISION_AT if k <= len(sides[1])])
                    for way, sides in ways.items()
                }
                same_class = {
                    way: torch.bincount(candidates, minlength=len(kinds))[queries].numpy()
                    for way, (*_, queries, candidates) in ways.items()
                }
            return retrieval_predictions(
                table["image_id"][:], table["patient_id"][:], ranks, text_ids, precisions=precisions,
                same_class=same_class, num_resamples=num_resamples,
            )  # fmt: skip

        outcome = {"n_train": 0, "head_params": 0, "trainable_params": 0, "selected_on": "none"}
        finish_run(found, Path(output_dir), fields, score, outcome, system.notes)
    return found


def _features(model: Any, modality: str, embeds: torch.Tensor) -> torch.Tensor:
    get = getattr(model, f"get_{modality}_features")
    parts = [
        get(**{f"{modality}_embeds": part.to(model.device, model.dtype)}).pooler_output.float().cpu()
        for part in embeds.split(BATCH_ROWS)
    ]
    return torch.cat(parts)


def load_test_pairs(
    arguments: DownstreamArguments, model: AdaptorModel, device: str, text_tower: Any
) -> tuple[Dataset, EmbeddingCache, LoadedParts]:
    """
    The test rows that have image and report, these as a view of an embedding cache, and the parts that they are of.

    Raises:
        ValueError: there is no test part, or as of `embed_test_pairs`.
    """
    loaded = load_parts(arguments, "pretraining")
    if "test" not in loaded.parts:
        raise ValueError(f"{arguments.name} has no test part; it has {', '.join(loaded.parts)}.")
    pairs = embed_test_pairs(
        loaded.parts["test"], vision_tower_of(arguments, model), text_tower, cache_dir_of(arguments),
        batch_size=arguments.extraction_batch_size, device=device, check=arguments.check,
    )  # fmt: skip
    rows = np.asarray(pairs.pairs["source_row"][:])
    return loaded.parts["test"].select(rows), pairs, loaded


def run(arguments: DownstreamArguments, device: str) -> str:
    """The task of `--task retrieval`: embed the test pairs, score both ways, and give the text to print."""
    model = load_adaptor(arguments)
    text_tower = load_checkpoint_text_tower(arguments, model, device)
    dataset, pairs, loaded = load_test_pairs(arguments, model, device, text_tower)
    classes = None
    if "labels" in dataset.column_names and hasattr(dataset.features["labels"], "num_classes"):
        classes = np.asarray(dataset["labels"][:], np.int64)
    runs = run_retrieval(
        pairs,
        systems_of(arguments, model, device),
        arguments.output_dir,
        dataset=arguments.name,
        split_hash=loaded.split_hash,
        seen=loaded.seen,
        classes=classes,
        towers=(vision_tower_of(arguments, model), text_tower),
        num_resamples=arguments.num_resamples,
    )
    return summarize(runs)


__all__ = ["embed_test_pairs", "load_test_pairs", "run", "run_retrieval"]
