"""A batch of pairs: made of what a data set gives, what it holds beside the model's inputs, what is wrong with one."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..objectives.base import MODEL_INPUTS
from ..objectives.positives import POSITIVE_COLUMN, positive_ids

# What a batch of the cache says about its rows, and what the model does not take.
ROW_COLUMNS = ("text_row", "study", "row", "source")
IMAGE_COLUMNS = ("pixel_values", "image_embeds", "image_attention_mask", "regions", "shallow")
TEXT_COLUMNS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "text_embeds",
    "text_attention_mask",
    "words",
    "sentences",
)


class PairCollator:
    """
    Collator of any data set of pairs: a batch that is finished stays as it is, single examples are stacked.

    Of an example it takes `pixel_values` or `image_embeds`, `input_ids` or `text_embeds`, their masks, and `text_row`,
    `study`, `row`, `source`; tensors, arrays and lists of numbers alike, decimals of lists as float32. Other columns
    are left out.

    Args:
        pad (`Callable`, *optional*): `pad` of a tokenizer, for `input_ids` of different lengths.
    """

    def __init__(self, pad: Callable[..., Mapping[str, torch.Tensor]] | None = None):
        self.pad = pad

    def __call__(self, batch: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Raises:
            ValueError: examples without image or text inputs, or of different shapes.
        """
        if isinstance(batch, Mapping):
            return with_text_rows(dict(batch))
        known = [name for name in (*IMAGE_COLUMNS, *TEXT_COLUMNS, *ROW_COLUMNS) if name in batch[0]]
        if isinstance(batch[0].get("source"), str):
            # What data sets of the hub, and public ones, call so: a file and row, an address.
            known.remove("source")
        if not {"pixel_values", "image_embeds"} & set(known) or not {"input_ids", "text_embeds"} & set(known):
            raise ValueError(
                "Examples of pairs need pixel_values or image_embeds, and input_ids or text_embeds; these have "
                f"{', '.join(map(str, batch[0]))}. Make them with the model's processor, or give a data_collator."
            )
        padded = self._padded(batch, [name for name in TEXT_COLUMNS[:3] if name in known])
        return with_text_rows(
            {name: padded[name] if name in padded else self._stacked(batch, name) for name in (*known, *padded)}
        )

    def _padded(self, batch: Sequence[Mapping[str, Any]], names: list[str]) -> Mapping[str, torch.Tensor]:
        if "input_ids" not in names or len({len(example["input_ids"]) for example in batch}) == 1:
            return {}
        if self.pad is None:
            raise ValueError(
                "input_ids of a batch are of different lengths. Give the trainer the processor (processing_class), "
                "which pads them, or pad them in the data set."
            )
        return self.pad([{name: example[name] for name in names} for example in batch], return_tensors="pt")

    @staticmethod
    def _stacked(batch: Sequence[Mapping[str, Any]], name: str) -> torch.Tensor:
        values = [_tensor(example[name]) for example in batch]
        if len(shapes := {tuple(value.shape) for value in values}) > 1:
            one, other = sorted(shapes)[:2]
            raise ValueError(f"{name} of a batch are of different shapes, such as {one} and {other}.")
        return torch.stack(values)


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    array = np.asarray(value)
    # A list of decimals says nothing of their precision.
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def side_of_column(name: str) -> str:
    """
    Which items the rows of a column are: `"image"` (pixel_values, regions, shallow, `image_*`, `view_*`), `"text"`
    (input_ids, attention_mask, token_type_ids, words, sentences, `text_*`), or `"row"`, all others.
    """
    if name in IMAGE_COLUMNS or name.startswith(("image_", "view_")):
        return "image"
    return "text" if name in TEXT_COLUMNS or name.startswith("text_") else "row"


def with_text_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with `text_row` `(B,)` int64, equal for equal text inputs, where the data set gives none."""
    name = next((name for name in ("text_embeds", "input_ids") if batch.get(name) is not None), None)
    if "text_row" in batch or name is None:
        return batch
    texts = batch[name]
    mask = batch.get("attention_mask" if name == "input_ids" else "text_attention_mask")
    if mask is not None:
        texts = texts.masked_fill(mask.reshape(mask.shape + (1,) * (texts.ndim - mask.ndim)) == 0, 0)
    rows = texts.detach().cpu().flatten(1)
    rows = (rows.float() if rows.is_floating_point() else rows).numpy()
    # Zeros at an end are padding, and as long as the longest text of the batch.
    parts = [np.trim_zeros(row).tobytes() if name == "input_ids" else row.tobytes() for row in rows]
    digests = [int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "little", signed=True) for part in parts]
    return batch | {"text_row": torch.tensor(digests, dtype=torch.int64, device=texts.device)}


def split_inputs(inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a batch says beside the model's inputs, whatever its columns are called; and those inputs."""
    inputs = with_text_rows(dict(inputs))
    of_model = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
    return {name: value for name, value in inputs.items() if name not in of_model}, of_model


def describe_bad_batch(inputs: dict[str, torch.Tensor], loss: torch.Tensor) -> str:
    """Which rows of a batch hold NaN or infinity, by their row in the split, without naming a patient."""
    bad = []
    for name in ("image_embeds", "text_embeds"):
        if name in inputs:
            finite = inputs[name].flatten(1).isfinite().all(1)
            rows = inputs.get("row", torch.arange(len(finite)))[~finite].tolist()
            if rows:
                where = "rows" if "row" in inputs else "places in the batch"
                bad.append(f"{name} of {where} {rows[:10]}{' and more' if len(rows) > 10 else ''}")
    if bad:
        return f"The loss is {loss.item()}: NaN or infinity in {'; '.join(bad)}. Rebuild or verify the embedding cache."
    return (
        f"The loss is {loss.item()} although the inputs are finite. Go on from the last checkpoint with a lower "
        "learning_rate, in float32, or with --objective '{\"max_logit_scale\": 100}'."
    )


def check_last_batch(rows: int, per_device: int, world_size: int) -> None:
    """Raise ValueError where an uneven last batch has rows for some processes only: these would wait for the others."""
    left = rows % (per_device * world_size)
    if 0 < left <= per_device * (world_size - 1):
        raise ValueError(
            f"The last batch of {rows:,} pairs has {left:,}, of which {world_size} processes with {per_device:,} each "
            "leave none to the last one. Fill it up with pairs of the first batch (even_batches in accelerator_config, "
            "the default), leave it out (--dataloader_drop_last True), or choose another batch size."
        )


__all__ = [
    "POSITIVE_COLUMN",
    "ROW_COLUMNS",
    "PairCollator",
    "check_last_batch",
    "describe_bad_batch",
    "positive_ids",
    "side_of_column",
    "split_inputs",
    "with_text_rows",
]
