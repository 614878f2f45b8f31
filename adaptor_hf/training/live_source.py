"""Pairs of a run whose towers train: the sides that train come from their files, frozen ones from the cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.catalog import get_dataset
from ..data.live_pairs import LivePairs
from ..data.places import several
from ..embeddings.build import worker_count
from ..embeddings.table_rows import rows_of_table
from ..modeling_adaptor import AdaptorModel
from ..objectives import Objective
from ..towers.terms import note_training_data
from ..towers_adaptor import load_text_tower, load_vision_tower
from .arguments import AdaptorTrainingArguments
from .needs import cache_columns, needs_of_aligner
from .pair_batches import side_of_column
from .pairs import TrainingPairs
from .script_arguments import DataArguments, ModelArguments

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

LIVE_EVAL_ROWS = 64
"""Rows that towers embed at once in evaluation, where no number is given: images, where a cache has vectors."""

# Columns of texts that a cache knows and a live tower does not change.
_OF_THE_CACHE = frozenset({"text_row", "words", "sentences"})


class LiveSource(Dataset):
    """
    A split of pairs for training and evaluation. A batch, made in the workers of a `DataLoader`, has of the sides that
    train `pixel_values`, with views `view_pixel_values` and `view_boxes`, and `input_ids`, `attention_mask` (padded);
    of a frozen side what the cache holds; and `text_row`, `study`, `row`, `source` of the cache.

    Args:
        live (`LivePairs`): The rows of the split, in its order.
        cached (`EmbeddingCache`): The same rows, opened with the columns that are read.
        trained (`Collection[str]`): Sides that train, of `image` and `text`.
        pad (`Callable`, *optional*): `pad` of the tokenizer, where texts are live.

    Raises:
        ValueError: live and cached rows differ in number.
    """

    def __init__(
        self,
        live: LivePairs,
        cached: EmbeddingCache,
        trained: Collection[str],
        pad: Callable[..., Mapping[str, torch.Tensor]] | None = None,
    ):
        if len(live) != len(cached):
            raise ValueError(
                f"There are {len(live):,} live rows and {len(cached):,} in the cache: they are not the same."
            )
        self.live, self.cached, self.trained, self.pad = live, cached, frozenset(trained), pad

    def __len__(self) -> int:
        return len(self.cached)

    @property
    def sequences(self) -> bool:
        """Whether a frozen side has its tokens, as the Adaptor reads them."""
        return self.cached.sequences

    @property
    def source_names(self) -> list[str]:
        return self.cached.source_names

    @property
    def source_codes(self) -> np.ndarray | None:
        return self.cached.source_codes

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose augmentations are drawn, also in workers that run already."""
        self.live.set_epoch(epoch)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        cached = {
            name: values
            for name, values in self.cached.__getitems__(rows).items()
            if name in _OF_THE_CACHE or side_of_column(name) not in self.trained
        }
        examples = [self.live[int(row)] for row in rows]
        # Numbers of rows are those in the whole cache, as in a run on embeddings.
        return self._collated(examples) | cached

    def _collated(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        names = [name for name in examples[0] if name != "row"]
        of_texts = [name for name in names if side_of_column(name) == "text"]
        batch = {name: torch.stack([example[name] for example in examples]) for name in names if name not in of_texts}
        if of_texts:
            texts = [{name: example[name] for name in of_texts} for example in examples]
            batch |= self.pad(texts, return_tensors="pt")
        return batch


def make_model(
    model_arguments: ModelArguments,
    cache: EmbeddingCache,
    device: torch.device,
    *,
    names: Sequence[str] = (),
    **kwargs: Any,
) -> AdaptorModel:
    """
    The run's Adaptor, with the towers that train attached to it; frozen ones stay away, their embeddings are cached.

    Args:
        model_arguments (`ModelArguments`): Shape of the Adaptor, and which towers train.
        cache (`EmbeddingCache`): By whose towers.
        device (`torch.device`): Where the towers are put.
        names (`Sequence[str]`): Of the training data, for what trained towers say that they have seen.
        kwargs: As of `AdaptorConfig`: `data_terms`, `split_rule`.
    """
    model = AdaptorModel(model_arguments.config_on(cache, **kwargs))
    trainable = model_arguments.trainable
    if not trainable:
        return model
    model.to(device)
    if "vision" in trainable:
        model.attach_towers(vision_model=load_vision_tower(cache.vision_spec, device=device))
    if "text" in trainable:
        model.attach_towers(text_model=load_text_tower(cache.text_spec, device=device))
    for kind in trainable:
        note_training_data(getattr(model, f"{kind}_model").spec, names, kwargs.get("data_terms"))
    named = {f"{kind}_model": value for kind, value in trainable.items()}
    model.set_trainable_towers(**named, lora_rank=model_arguments.lora_rank)
    return model


def live_parts(
    parts: dict[str, EmbeddingCache],
    pairs: TrainingPairs | EmbeddingCache,
    model: AdaptorModel,
    objective: Objective,
    data: DataArguments,
    model_arguments: ModelArguments,
    training: AdaptorTrainingArguments,
) -> Mapping[str, Dataset]:
    """
    What a run trains and is evaluated on: the parts of the cache as they are where both towers are frozen, else of the
    training and the validation part a [`LiveSource`]. Only the training part is augmented.

    Raises:
        ValueError: the table is not the one that the cache was built from.
    """
    trainable = model_arguments.trainable
    if not trainable:
        return parts
    trained = {"image" if kind == "vision" else kind for kind in trainable}
    needed = cache_columns(objective.needs | needs_of_aligner(model.config))
    columns = [name for name in needed if name in _OF_THE_CACHE or side_of_column(name) not in trained]
    vision, text = model.vision_model, model.text_model
    found = {}
    for name in ("train", "validation"):
        if name not in parts:
            continue
        cached = parts[name].with_columns(*columns, sequences=bool({"image_tokens", "text_tokens"} & {*columns}))
        views = data.views if vision is not None and "views" in objective.needs else 0
        live = LivePairs(
            pairs.dataset.select(rows_of_table(cached, pairs.dataset)),
            None if vision is None else vision.processor,
            None if text is None else text.processor,
            recipe=model_arguments.image_recipe if name == "train" else None,
            sentence_recipe=model_arguments.sentence_recipe if name == "train" else None,
            view_recipe=data.view_recipe if views else None,
            views=views,
            seed=training.seed,
            max_length=data.max_text_length,
        )
        found[name] = LiveSource(live, cached, trained, None if text is None else text.processor.pad)
    return found


def names_of_data(data: DataArguments) -> list[str]:
    """What towers that are trained on the data call it: public sets as towers do, others as the user does."""
    public = [get_dataset(name).pretraining_name or name for name in several(data.dataset)]
    return public or [data.dataset_name or "unnamed image-report pairs"]


def live_arguments(model_arguments: ModelArguments, training: AdaptorTrainingArguments) -> AdaptorTrainingArguments:
    """
    Training arguments, where a tower trains fitted to files what was left as it is for embeddings: workers read them,
    and fewer rows are evaluated at once. Those that are given stay as they are, for controls on embeddings.
    """
    if not model_arguments.trainable:
        return training
    # Of workers; the tokenizer warns of each fork otherwise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    default = type(training).__dataclass_fields__["per_device_eval_batch_size"].default
    rows = training.per_device_eval_batch_size
    return replace(
        training,
        dataloader_num_workers=training.dataloader_num_workers or worker_count(training.device.type == "cuda"),
        per_device_eval_batch_size=LIVE_EVAL_ROWS if rows == default else rows,
    )


__all__ = ["LIVE_EVAL_ROWS", "LiveSource", "live_arguments", "live_parts", "make_model", "names_of_data"]
