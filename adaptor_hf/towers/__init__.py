"""Towers by name: presets, their listing, and loading."""

from ..towers_adaptor import (
    TextTower,
    VisionTower,
    load_text_tower,
    load_vision_tower,
    tower_digest,
    tower_from_config,
)
from .listing import list_towers
from .presets import TOWER_PRESETS

__all__ = [
    "TOWER_PRESETS",
    "TextTower",
    "VisionTower",
    "list_towers",
    "load_text_tower",
    "load_vision_tower",
    "tower_digest",
    "tower_from_config",
]
