"""A preset's network without its weights: sizes can be known and tested where no weights can be had."""

import torch
from transformers import AutoConfig

from ..towers_adaptor import SPEC_KEYS, TextTower, VisionTower, tower_from_config
from .presets import TOWER_PRESETS


def build_architecture(preset: str) -> VisionTower | TextTower:
    """Builds a preset's network on the meta device: parameters have shapes but no values, so none can be random.

    A pooling that depends on the checkpoint counts as "cls" here.

    Raises:
        KeyError: there is no such preset.
    """
    facts = TOWER_PRESETS[preset]
    spec = dict.fromkeys(SPEC_KEYS) | {key: value for key, value in facts.items() if key in SPEC_KEYS}
    spec |= {"preset": preset, "pooling": spec["pooling"] or "cls"}
    config = None if facts["architecture"] is None else AutoConfig.for_model(**facts["architecture"])
    with torch.device("meta"):
        return tower_from_config(spec, config)
