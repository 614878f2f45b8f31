"""What a batch of pairs holds beside the model's inputs, and what is wrong with one."""

import torch

# What a batch of the cache says about its rows, and what the model does not take.
ROW_COLUMNS = ("text_row", "study", "row")
POSITIVE_COLUMN = {"text": "text_row", "study": "study", "pair": None}


def split_inputs(inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a batch says about its rows, and what goes into the model."""
    rows = {name: inputs[name] for name in ROW_COLUMNS if name in inputs}
    return rows, {name: value for name, value in inputs.items() if name not in rows}


def describe_bad_batch(inputs: dict[str, torch.Tensor], loss: torch.Tensor) -> str:
    """Which rows of a batch hold NaN or infinity, by their row in the split, without naming a patient."""
    bad = []
    for name in ("image_embeds", "text_embeds"):
        if name in inputs:
            finite = inputs[name].flatten(1).isfinite().all(1)
            rows = inputs.get("row", torch.arange(len(finite)))[~finite].tolist()
            if rows:
                bad.append(f"{name} of rows {rows[:10]}{' and more' if len(rows) > 10 else ''}")
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


__all__ = ["POSITIVE_COLUMN", "ROW_COLUMNS", "check_last_batch", "describe_bad_batch", "split_inputs"]
