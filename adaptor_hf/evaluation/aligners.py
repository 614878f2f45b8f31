"""What tables, figures and cards call a system by the aligner that it has between the towers and the shared space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .controls import CONTROLS

PAPERS = "adaptor"
OTHERS = ("linear", "residual", "gated", "mlp")
"""Aligners beside the paper's. `AdaptorConfig` has them too; this file is read where that would be slow to import."""
_NAME = CONTROLS["adaptor"].name


def aligner_of(config: Mapping[str, Any]) -> str:
    """The aligner of a model's config as a dictionary; configs of before there were aligners have layers alone."""
    return config.get("aligner") or (PAPERS if config.get("num_hidden_layers") else "linear")


def describe_aligner(config: Mapping[str, Any]) -> str:
    """The module between the towers, in words, of a model's config as a dictionary."""
    layers, width, aligner = config.get("num_hidden_layers"), config.get("hidden_size"), aligner_of(config)
    attending = f"{layers} layers, width {width}, {config.get('num_attention_heads')} heads"
    text = {
        PAPERS: f"An Adaptor of {attending}",
        "linear": f"Two linear projections, width {width}",
        "residual": f"Two linear projections and an Adaptor branch of {attending}",
        "gated": f"A gated unit a side, width {width}",
        "mlp": f"An MLP a side of {layers} hidden layer{'' if layers == 1 else 's'}, width {width}",
    }[aligner]
    if heads := config.get("attention_pooling_heads"):
        text += f", attention pooling of tokens with {heads} heads"
    return text


def system_name(key: str, aligner: str | None = None) -> str:
    """
    What tables call a system: its name in `CONTROLS`, with the model's own aligner where that is not the Adaptor, such
    as "mlp" and "mlp, untrained".

    Args:
        key (`str`): Of `CONTROLS`.
        aligner (`str`, *optional*): Of the model; None where there is none.
    """
    name = CONTROLS[key].name
    return aligner + name.removeprefix(_NAME) if aligner in OTHERS and name.startswith(_NAME) else name


def name_in_controls(key: str | None, name: str) -> str:
    """A [`system_name`] with the aligner taken back, by which runs are known; any other name as it is."""
    names = {system_name(key, aligner): CONTROLS[key].name for aligner in OTHERS} if key in CONTROLS else {}
    return names.get(name, name)


__all__ = ["OTHERS", "PAPERS", "aligner_of", "describe_aligner", "name_in_controls", "system_name"]
