"""A preset's network without its weights: its sizes can be tested where no weights can be had."""

import torch
from transformers import AutoConfig

from adaptor_hf.towers.presets import TOWER_PRESETS
from adaptor_hf.towers_adaptor import SPEC_KEYS, TextTower, VisionTower, tower_from_config


def build_architecture(preset: str) -> VisionTower | TextTower:
    """The network of a preset on the meta device; a pooling that depends on the checkpoint counts as "cls" here."""
    facts = TOWER_PRESETS[preset]
    spec = dict.fromkeys(SPEC_KEYS) | {key: value for key, value in facts.items() if key in SPEC_KEYS}
    spec |= {"preset": preset, "pooling": spec["pooling"] or "cls"}
    config = None if facts["architecture"] is None else AutoConfig.for_model(**facts["architecture"])
    with torch.device("meta"):
        return tower_from_config(spec, config)
