"""From the options of a table, its split and its towers to embedded pairs: the same for a run and for a cache alone."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.pair_arguments import DataArguments, check_private_pairs
from ..data.places import check_folder, check_table_options, several
from ..data.stored_arguments import kept_of_images, kept_of_texts, text_pooling, vision_pooling
from ..data.table_arguments import TowerArguments
from ..embeddings import EmbeddingCache, build_cache
from ..embeddings.estimate import remove_dead_samples
from ..options.command import started_as
from ..privacy.mode import is_private
from ..tower_bundles_adaptor import use_towers_dir
from ..towers.check import check_tower
from ..towers.references import tower_reference, weights_asked_for
from .pairs import TrainingPairs


def check_sources(data: DataArguments, towers: TowerArguments) -> None:
    """
    Fail now where a place or a tower is not there, a tower cannot be pooled as asked, or private mode refuses an
    option. No table or weights are read.

    Raises:
        OSError, ValueError: naming the option.
    """
    if is_private():
        check_private_pairs(data)
    check_table_options(data, data.train_file, "train_file")
    for folder in several(data.cache):
        check_folder("cache", folder)
    if towers.towers_dir:
        use_towers_dir(towers.towers_dir)
    for name, tower in tower_references(data, towers).items():
        if tower is not None:
            check_tower(name.partition("_")[0], tower)


def tower_references(data: DataArguments, towers: TowerArguments) -> dict[str, Any]:
    """`vision_tower` and `text_tower` as `build_cache` takes them: names, or specs where the pooling was asked for."""
    asked = {"vision": vision_pooling(data), "text": text_pooling(data)}
    named = {"vision": towers.vision_tower, "text": towers.text_tower}
    weights = weights_asked_for(*named.values(), towers.init_seed, towers.text_tokenizer)
    return {
        f"{kind}_tower": None if name is None else tower_reference(kind, name, **asked[kind], **weights[kind])
        for kind, name in named.items()
    }


def loaded_towers(data: DataArguments, towers: TowerArguments) -> tuple[Any, Any]:
    """The vision and the text tower themselves, None where none is named."""
    from ..towers import load_text_tower, load_vision_tower

    vision, text = tower_references(data, towers).values()
    return None if vision is None else load_vision_tower(vision), None if text is None else load_text_tower(text)


def embedding_options(data: DataArguments) -> dict[str, Any]:
    """What of the options `build_cache` is told, but for towers, folder and what belongs to this machine."""
    found = {
        "batch_size": data.extraction_batch_size,
        "max_text_length": data.max_text_length,
        "dtype": data.embedding_dtype,
        "image_store": data.image_store,
        "image_store_size": data.image_store_size,
        "check": data.check,
        "max_fault_fraction": data.max_fault_fraction,
    }
    return found | kept_of_images(data) | kept_of_texts(data)


def embed_pairs(
    pairs: TrainingPairs,
    data: DataArguments,
    towers: TowerArguments,
    cache_dir: str | os.PathLike,
    *,
    rebuild: bool = False,
    **options: Any,
) -> EmbeddingCache:
    """
    The cache of pairs: every image and report through its tower once, as far as it is not there.

    Args:
        pairs: From `load_training_pairs`.
        data, towers: What it was loaded by.
        cache_dir: Where the cache is kept.
        rebuild: Embed also what is there.
        options: Of this machine, as of `build_cache`: device, num_workers.
    """
    remove_dead_samples(cache_dir)
    if rebuild:
        options["rebuild"] = True
    return build_cache(
        pairs.dataset, cache_dir=cache_dir, **tower_references(data, towers), **embedding_options(data), **options
    )


def options_beside_cache(data: DataArguments) -> dict[str, str]:
    """Of the options that a cache was built by, those that it does not know and that another run needs."""
    found = {"dataset_name": data.dataset_name, "id_namespace": data.id_namespace, "duplicates": data.duplicates}
    return {name: value for name, value in found.items() if value not in (None, "refuse")}


def next_run(cache: Path, output_dir: str | os.PathLike, more: Mapping[str, str] | None = None) -> str:
    """
    The command that trains on a cache, in words of a shell, for the end of a log.

    Args:
        cache: Its folder of pairs.
        output_dir: Of the next run.
        more: Further options by name.
    """
    if is_private():
        recipe = f" --recipe {more['recipe']}," if more and "recipe" in more else ""
        return (
            f"Next run: train_pretrain.py with --private, the same --key_file,{recipe} and --cache with this cache's "
            "folder."
        )
    more = dict(more or {})
    recipe = {"recipe": more.pop("recipe")} if "recipe" in more else {}
    options = {**recipe, "cache": str(cache), **more, "output_dir": str(output_dir)}
    words = shlex.join(word for name, value in options.items() for word in (f"--{name}", value))
    return f"Next run: {started_as('train_pretrain')} {words}"


__all__ = [
    "check_sources",
    "embed_pairs",
    "embedding_options",
    "loaded_towers",
    "next_run",
    "options_beside_cache",
    "tower_references",
]
