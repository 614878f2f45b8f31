"""What a tower's spec says of random weights: `random:NAME`, a seed, and the configuration that is built.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

from typing import Any

PREFIX = "random:"
DRAWN_KEYS = ("init_seed", "init_check", "init_config")
# One that trains keeps its tokenizer's place until it is saved, with the tokenizer.
RANDOM_KEYS = (*DRAWN_KEYS, "tokenizer")


def is_random(spec: dict[str, Any] | None) -> bool:
    """Whether a tower's weights are drawn from a seed. One that was trained since is no such tower any more."""
    return (spec or {}).get("init_seed") is not None


def describe_random(spec: dict[str, Any]) -> str:
    """What cards and tables say of such a tower."""
    return f"random weights, seed {spec['init_seed']}: nothing was pretrained"


__all__ = ["DRAWN_KEYS", "PREFIX", "RANDOM_KEYS", "describe_random", "is_random"]
