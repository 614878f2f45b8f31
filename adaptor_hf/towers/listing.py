"""The table of presets."""

from typing import Any

from .presets import KINDS, TOWER_PRESETS

COLUMNS = ("name", "kind", "domain", "hidden_size", "pooling", "license", "commercial", "tested", "source")


def list_towers(kind: str | None = None, commercial: bool | None = None) -> list[dict[str, Any]]:
    """One dict a preset, in the order of the documentation; reads no weights and needs no network.

    Args:
        kind: "vision" or "text" for one kind only.
        commercial: True for those whose recorded terms allow commercial use, False for all others ("no" and "unclear").

    Returns:
        Dicts with the keys name, kind, domain ("medical" or "general"), library, source (hub id, weights name or
        wheel), revision (None: not pinned), hidden_size, pooling (None: trained pooler, else "cls"), grid_shape and
        image_processor of vision towers, max_length of text towers, pretraining_data, license (None: not stated),
        data_terms, commercial ("yes", "no" or "unclear"), commercial_source and checked (the record's date; see
        `adaptor_hf.towers.presets`), tested ("architecture" or "real weights"), offline (True: the weights come from a
        wheel) and note.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"kind must be 'vision' or 'text', got {kind!r}.")
    rows = []
    for name, preset in TOWER_PRESETS.items():
        if kind in (None, preset["kind"]) and commercial in (None, preset["commercial"] == "yes"):
            facts = {key: value for key, value in preset.items() if key not in ("architecture", "name_or_path")}
            source = preset["name_or_path"]
            rows.append({"name": name, "source": source, "offline": source.startswith("package:"), **facts})
    return rows


def format_towers(rows: list[dict[str, Any]]) -> str:
    """The rows of `list_towers` as an aligned text table."""
    texts = [{**row, "pooling": row["pooling"] or "auto", "license": row["license"] or "not stated"} for row in rows]
    widths = {column: max(len(column), *(len(str(row[column])) for row in texts)) for column in COLUMNS}
    lines = ["  ".join(column.ljust(widths[column]) for column in COLUMNS)]
    lines += ["  ".join(str(row[column]).ljust(widths[column]) for column in COLUMNS) for row in texts]
    return "\n".join(line.rstrip() for line in lines)
