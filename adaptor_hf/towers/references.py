"""A tower as options name it: by name alone, or as a spec where it is to be pooled in another way."""

from __future__ import annotations

from typing import Any

from ..random_specs_adaptor import PREFIX
from ..tower_specs_adaptor import partial_spec


def tower_reference(kind: str, name: str, *, pooling: str | None = None, **others: Any) -> str | dict[str, Any]:
    """
    What `load_vision_tower`, `load_text_tower` and `build_cache` take for a tower.

    Args:
        kind (`str`): `"vision"` or `"text"`.
        name (`str`): A preset, hub id, folder, `timm:NAME`, `xrv:NAME` or `random:NAME`.
        pooling, others: As of the load functions, such as layers, truncate_layers, init_seed and tokenizer. Where none
            is given the name itself is returned.

    Raises:
        OSError, ValueError: there is no such name or pooling.
    """
    if pooling is None and not others:
        return name
    return partial_spec(kind, name, None, pooling, **others)


def weights_asked_for(
    vision_tower: str | None, text_tower: str | None, init_seed: int | None, text_tokenizer: str | None
) -> dict[str, dict[str, Any]]:
    """
    Of options, what [`tower_reference`] is told of random weights, by kind.

    Raises:
        ValueError: a seed without a tower that it is of.
    """
    named = {"vision": vision_tower, "text": text_tower}
    drawn = {kind for kind, name in named.items() if name is not None and name.startswith(PREFIX)}
    if init_seed is not None and not drawn:
        raise ValueError(f"--init_seed would have no effect: no tower is {PREFIX}NAME. Leave it out.")
    found = {kind: {"init_seed": init_seed} if kind in drawn and init_seed is not None else {} for kind in named}
    if text_tokenizer is not None:
        if text_tower is None:
            raise ValueError("--text_tokenizer would have no effect without --text_tower. Leave it out.")
        found["text"]["tokenizer"] = text_tokenizer
    return found


__all__ = ["tower_reference", "weights_asked_for"]
