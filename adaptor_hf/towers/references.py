"""A tower as options name it: by name alone, or as a spec where it is to be pooled in another way."""

from __future__ import annotations

from typing import Any

from ..tower_specs_adaptor import partial_spec


def tower_reference(kind: str, name: str, *, pooling: str | None = None, **layers: Any) -> str | dict[str, Any]:
    """
    What `load_vision_tower`, `load_text_tower` and `build_cache` take for a tower.

    Args:
        kind (`str`): `"vision"` or `"text"`.
        name (`str`): A preset, hub id, folder, `timm:NAME` or `xrv:NAME`.
        pooling, layers: As of the load functions. Where none is given the name itself is returned.

    Raises:
        OSError, ValueError: there is no such name or pooling.
    """
    if pooling is None and not layers:
        return name
    return partial_spec(kind, name, None, pooling, **layers)


__all__ = ["tower_reference"]
