"""The tower of one modality, named or loaded. Its weights are read only when there is something to compute or learn."""

import os
from pathlib import Path
from typing import Any

from ..files import read_json
from ..privacy.mode import is_private
from .files import write_json
from .keys import json_key, tower_files, tower_identity

_MEMO = "towers.json"


class TowerSource:
    """A vision or text tower for `build_cache`.

    Args:
        kind: "vision" or "text".
        tower: a name or spec for `load_vision_tower`/`load_text_tower`, or a loaded tower (used where it is).
        device: device to load a named tower on; None takes CUDA when there is one.
        folder: cache folder; remembers the identity of named towers by their files' sizes and modification times.
    """

    def __init__(self, kind: str, tower: Any, device: Any, folder: Path) -> None:
        self.kind = kind
        self._given = tower
        self._device = device
        self._memo = folder / _MEMO
        self._module = None if isinstance(tower, (str, dict, Path)) else tower
        if self._module is not None and getattr(tower, "spec", {}).get("kind") != kind:
            raise TypeError(
                f"{kind}_tower must be a name, a tower spec, or a loaded {kind} tower, got {type(tower).__name__}"
                f" of kind {getattr(tower, 'spec', {}).get('kind')!r}"
            )

    def load(self):
        """The tower itself, frozen and in eval mode."""
        if self._module is None:
            import torch

            from .. import towers_adaptor

            load = getattr(towers_adaptor, f"load_{self.kind}_tower")
            given = str(self._given) if isinstance(self._given, Path) else self._given
            device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._module = load(given, device=device)
        elif self._device is not None:
            self._module.to(self._device)
        return self._module.eval()

    def describe(self) -> tuple[dict, dict]:
        """Identity and spec of the tower; loads it only if its files changed since the last time."""
        if self._module is not None:
            return tower_identity(self._module), self._module.spec
        files = tower_files(self._given if isinstance(self._given, dict) else str(self._given))
        memo = self._read_memo()
        request = json_key([self.kind, self._given, _versions()])
        known = memo.get(request)
        if files and known and known["files"] == files:
            return known["identity"], known["spec"]
        tower = self.load()
        identity, spec = tower_identity(tower), tower.spec
        # The memo names the files' places.
        if files and not is_private() and os.access(self._memo.parent, os.W_OK):
            write_json(self._memo, memo | {request: {"files": files, "identity": identity, "spec": spec}})
        return identity, spec

    def _read_memo(self) -> dict:
        try:
            return read_json(self._memo)
        except (OSError, ValueError):
            return {}


def _versions() -> list[str]:
    # Another version may resolve the same name to other pooling or processing.
    from importlib.metadata import version

    return [version("adaptor-hf"), version("transformers"), version("timm")]
