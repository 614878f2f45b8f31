"""The tower of one modality, named or loaded. Its weights are read only when there is something to compute or learn."""

import logging
import os
from pathlib import Path
from typing import Any

from ..files import read_json
from ..privacy.mode import is_private
from .keys import json_key, tower_files, tower_identity
from .manifest import read_record, write_record

_MEMO = "towers.json"
_ADVICE = "Delete it: the towers are looked at again"

logger = logging.getLogger(__name__)


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
        self._identity: dict | None = None
        self._new: dict = {}  # of the memo
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
        """Identity and spec of the tower; loads it only if its files changed since `remember` wrote them down."""
        if self._module is not None:
            return self._identify(), self._module.spec
        files = tower_files(self._given if isinstance(self._given, dict) else str(self._given))
        memo = self._read_memo()
        request = json_key([self.kind, self._given, _versions()])
        known = memo.get(request)
        if files and known and known["files"] == files:
            return known["identity"], known["spec"]
        spec = self.load().spec
        identity = self._identify()
        if files:
            self._new = {request: {"files": files, "identity": identity, "spec": spec}}
        return identity, spec

    def remember(self) -> None:
        """Write down what `describe` had to load the tower for, when the build is not refused."""
        # The memo names the files' places.
        if self._new and not is_private() and os.access(self._memo.parent, os.W_OK):
            try:
                memo = read_towers(self._memo.parent)
            except ValueError:
                memo = {}  # which `describe` has said
            write_record(self._memo, {"towers": memo | self._new})

    def load_as(self, identity: dict) -> Any:
        """The tower, when it is what `describe` said, here or on the main process.

        Raises:
            ValueError: its weights, processor or pooling are others.
        """
        tower = self.load()
        found = self._identify()
        if found != identity:
            names = sorted(name for name in found.keys() | identity if found.get(name) != identity.get(name))
            raise ValueError(
                f"the {self.kind} tower is another one than the cache was begun with: {', '.join(names)} differ, "
                "though its files have the names, sizes and times that were noted. They are damaged, were replaced, or "
                f"are others on this machine. Get the tower's files again; if the change is meant, delete {self._memo}"
            )
        return tower

    def _identify(self) -> dict:
        if self._identity is None:
            self._identity = tower_identity(self._module)
        return self._identity

    def _read_memo(self) -> dict:
        try:
            return read_towers(self._memo.parent)
        except ValueError as error:
            logger.warning("%s", error)
            return {}


def read_towers(folder: Path) -> dict:
    """What a cache folder knows of named towers: identity and spec by request. That of version 0.1 counts for nothing.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / _MEMO
    if not path.is_file():
        return {}
    if _is_of_version_0_1(path):
        return {}
    towers = read_record(path, _ADVICE).get("towers")
    if not isinstance(towers, dict):
        raise ValueError(f"{path} is damaged: it names no towers. {_ADVICE}")
    return towers


def _is_of_version_0_1(path: Path) -> bool:
    """Whether the file has only requests in it, and none of the fields that come with a digest."""
    try:
        return not read_json(path).keys() & {"digest", "format", "towers", "version"}
    except (ValueError, AttributeError):
        return False


def _versions() -> list[str]:
    # Another version may resolve the same name to other pooling or processing.
    from importlib.metadata import version

    return [version("adaptor-hf"), version("transformers"), version("timm")]
