"""May we use it? What the presets record of their terms: facts with their sources, no legal advice.

`license` of a preset is that of the weights. `data_terms` says what the data of its pretraining ask for. `commercial`
is "yes", "no" or "unclear"; it is "yes" only where a licence allows it and nothing known of the data speaks against it.
`commercial_source` says where that comes from, and `checked` is the date of that record. Terms change: read them
yourself before you rely on them.
"""

from dataclasses import fields
from typing import Any

from ..random_specs_adaptor import PREFIX
from .presets import NO_WEIGHTS, TERM_KEYS, TOWER_PRESETS, TowerPreset

_NOT_STATED = {one.name: one.default for one in fields(TowerPreset) if one.name in TERM_KEYS}

_RANDOM = {key: NO_WEIGHTS[key] for key in TERM_KEYS}


def terms_of(tower: dict[str, Any] | None) -> dict[str, str | None]:
    """
    What is recorded of a tower's terms.

    Args:
        tower: A tower spec, a preset's row or an entry of a bundle; it is known by `preset`, else by `name_or_path`.

    Returns:
        Dict with the keys of `TERM_KEYS`; of an unknown tower, `commercial` is "unclear".
    """
    tower = tower or {}
    if str(tower.get("name_or_path")).startswith(PREFIX):
        return dict(_RANDOM)
    name = tower.get("preset")
    if name not in TOWER_PRESETS:
        same = (preset for preset, facts in TOWER_PRESETS.items() if facts["name_or_path"] == tower.get("name_or_path"))
        name = next(same, None)
    known = _NOT_STATED if name is None else TOWER_PRESETS[name]
    return {key: known[key] for key in TERM_KEYS}


__all__ = ["TERM_KEYS", "terms_of"]
