"""May we use it? What the presets record of their terms: facts with their sources, no legal advice.

`license` of a preset is that of the weights. `data_terms` says what the data of its pretraining ask for. `commercial`
is "yes", "no" or "unclear"; it is "yes" only where a licence allows it and nothing known of the data speaks against it.
`commercial_source` says where that comes from, and `checked` is the date of that record. Terms change: read them
yourself before you rely on them.
"""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from ..random_specs_adaptor import PREFIX
from .presets import NO_WEIGHTS, TERM_KEYS, TOWER_PRESETS, TowerPreset

UNKNOWN = "unknown"
"""In the `pretraining_data` of a trained tower: what its origin saw is not known."""
_NOT_STATED = {one.name: one.default for one in fields(TowerPreset) if one.name in TERM_KEYS}

_RANDOM = {key: NO_WEIGHTS[key] for key in TERM_KEYS}


def terms_of(tower: dict[str, Any] | None) -> dict[str, str | None]:
    """
    What is recorded of a tower's terms; of one that was trained here the strictest of its origin's and its data's.

    Args:
        tower: A tower spec, a preset's row or an entry of a bundle; it is known by `preset`, else by `name_or_path`,
            and one that was trained by what it started from.

    Returns:
        Dict with the keys of `TERM_KEYS`; of an unknown tower, `commercial` is "unclear".
    """
    tower = tower or {}
    origin = tower.get("base_tower") or tower
    if str(origin.get("name_or_path")).startswith(PREFIX):
        return dict(_RANDOM) if tower.get("trained") is None else _with_data(_RANDOM | {"data_terms": None}, tower)
    name = origin.get("preset")
    if name not in TOWER_PRESETS:
        place = origin.get("name_or_path")
        same = (preset for preset, facts in TOWER_PRESETS.items() if place and facts["name_or_path"] == place)
        name = next(same, None)
    known = _NOT_STATED if name is None else TOWER_PRESETS[name]
    terms = {key: known[key] for key in TERM_KEYS}
    return terms if tower.get("trained") is None else _with_data(terms, tower)


def _with_data(terms: dict[str, str | None], tower: dict[str, Any]) -> dict[str, str | None]:
    """The terms of the origin, and what those of the data that the tower was trained on add. They are never less."""
    restricted = tower.get("data_terms") or {}
    own = "; ".join(f"{name}: {text}" for name, text in restricted.items())
    said = "; ".join(part for part in (terms["data_terms"], own) if part)
    if terms["commercial"] == "yes":
        why = (
            "the terms of the data that it was trained on here restrict it"
            if restricted
            else ("its origin allows it; the terms of the data that it was trained on here are not recorded")
        )
        terms = terms | {"commercial": "unclear", "commercial_source": why}
    return terms | {"data_terms": said or None}


def note_training_data(spec: dict[str, Any], names: Iterable[str], data_terms: dict[str, str] | None) -> None:
    """
    Add to a tower's spec, in place, what it is trained on: to `pretraining_data`, and its terms to `data_terms`.

    Args:
        spec: Of the tower. Where nobody knows what its origin saw, `pretraining_data` then begins with "unknown".
        names: Of the data sets, as results call them; never a place.
        data_terms: As of `restricted_terms`.
    """
    seen = spec.get("pretraining_data")
    spec["pretraining_data"] = list(dict.fromkeys([*([UNKNOWN] if seen is None else seen), *names]))
    if terms := (spec.get("data_terms") or {}) | (data_terms or {}):
        spec["data_terms"] = terms


__all__ = ["TERM_KEYS", "UNKNOWN", "note_training_data", "terms_of"]
