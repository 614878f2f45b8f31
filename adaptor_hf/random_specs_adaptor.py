"""What a tower's spec says of random weights: `random:NAME`, a seed, and the configuration that is built.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import hashlib
import json
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


def config_digest(spec: dict[str, Any]) -> str:
    """SHA-256 of the configuration that is built: folders of one name may hold others."""
    content = json.dumps(spec.get("init_config"), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def is_same_network(spec: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two of these towers are one network, whatever the seed; end tokens are put in by the tokenizer."""
    filled = ("eos_token_id", "bos_token_id", "pad_token_id")
    configs = [
        {key: value for key, value in (one.get("init_config") or {}).items() if key not in filled}
        for one in (spec, other)
    ]
    same_name = spec.get("name_or_path") == other.get("name_or_path")
    return same_name and config_digest({"init_config": configs[0]}) == config_digest({"init_config": configs[1]})


__all__ = ["DRAWN_KEYS", "PREFIX", "RANDOM_KEYS", "config_digest", "describe_random", "is_random", "is_same_network"]
