"""What a tower's spec says of its network, in words for plans, results, tables and cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_layers(spec: Mapping[str, Any] | None) -> str:
    """
    Where a network was cut, and of which layers its tokens are: `"cut after 3 layers"`, `"layers 2+4 (concat, norm)"`.
    "" of a whole one that gives its last layer.
    """
    spec, parts = spec or {}, []
    if (count := spec.get("truncate_layers")) is not None:
        parts.append(f"cut after {count} layer{'' if count == 1 else 's'}")
    if layers := spec.get("layers"):
        joined = [spec.get("layers_merge") or "concat"] if len(layers) > 1 else []
        joined += ["norm"] if spec.get("layers_norm") else []
        shown = f"layer{'' if len(layers) == 1 else 's'} {'+'.join(map(str, layers))}"
        parts.append(f"{shown} ({', '.join(joined)})" if joined else shown)
    return ", ".join(parts)


def describe_training(trained: str | int | None, *, before: bool = False) -> str:
    """
    What of a tower was trained, by `trained` of its spec: `"trained in full"`. "frozen" of one that was not.

    Args:
        trained (`str` or `int`, *optional*): `"full"`, `"lora"`, or a number of last blocks.
        before (`bool`): Of a run that is planned: `"all of it trains"`.
    """
    if isinstance(trained, int):
        blocks = f"last {trained} blocks" if trained > 1 else "last block"
        return f"its {blocks} train{'' if trained > 1 else 's'}" if before else f"{blocks} trained"
    said = {"full": ("all of it trains", "trained in full"), "lora": ("LoRA in it trains", "trained by LoRA")}
    return said[trained][not before] if trained in said else "frozen"


__all__ = ["describe_layers", "describe_training"]
