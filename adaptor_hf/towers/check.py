"""Whether a tower can be had, before anything that takes long: its name, its configuration, offline its weights."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache
from transformers.utils import cached_file

from ..random_specs_adaptor import is_random
from ..random_towers_adaptor import fit_words
from ..tower_bundles_adaptor import find_bundled
from ..tower_sources_adaptor import missing_tower
from ..tower_specs_adaptor import TOWER_PRESETS, load_text_processor, location_of, partial_spec, resolve_library
from ..xrv_towers_adaptor import PREFIX, check_xrv_files, check_xrv_name, files_of_classifier, is_classifier

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def check_tower(kind: str, name: str | dict[str, Any]) -> None:
    """
    Fail now where [`load_vision_tower`] or [`load_text_tower`] would fail for the tower's name. No weights are read;
    timm loads for a tower of timm.

    Args:
        kind (`str`): `"vision"` or `"text"`.
        name (`str` or `dict`): A preset, hub id, folder, `timm:NAME`, `xrv:NAME` or `random:NAME`, or a tower spec.

    Raises:
        OSError, ValueError: there is no such tower, with names that are close; or, offline, it is not on this machine.
    """
    try:
        spec = partial_spec(kind, name, None, None)
        if is_random(spec):
            if kind == "text":
                fit_words(spec, load_text_processor(spec))
            return
        ours = spec["library"] == "torchxrayvision" or is_classifier(spec["name_or_path"])
        if ours and find_bundled(spec) is None:
            check_xrv_name(spec["name_or_path"].removeprefix(PREFIX))
            if is_offline_mode():
                check_xrv_files(spec["name_or_path"].removeprefix(PREFIX), {})
            return
        location = location_of(spec)
        if spec["name_or_path"].startswith("package:") or spec["library"] == "torchxrayvision":
            return
        resolve_library(spec, location, {})
        if is_offline_mode() and not any(_has(location, file, spec["revision"]) for file in _WEIGHTS):
            raise missing_tower(location, spec["revision"], OSError("there are no weights"))
    except OSError as error:
        if close := close_towers(kind, name if isinstance(name, str) else name["name_or_path"]):
            raise type(error)(f"{error}\nDid you mean {' or '.join(close)}?") from error
        raise


def is_on_this_machine(kind: str, name: str | dict[str, Any]) -> bool:
    """
    Whether a tower's weights are here: packaged, in a folder or a bundle, or in the cache of the Hub's client. Nothing
    is read or asked for; False where a library of its own keeps them.

    Args:
        kind (`str`): `"vision"` or `"text"`.
        name (`str` or `dict`): As for [`check_tower`].
    """
    spec = partial_spec(kind, name, None, None)
    if is_random(spec):
        return True
    if find_bundled(spec) is not None or spec["name_or_path"].startswith("package:"):
        return True
    if is_classifier(spec["name_or_path"]):
        return bool(files_of_classifier(spec["name_or_path"]))
    location = location_of(spec)
    if os.path.isdir(location):
        return True
    return any(
        isinstance(try_to_load_from_cache(location, file, revision=spec["revision"]), str)
        for file in (*_WEIGHTS, "open_clip_model.safetensors")
        if location.count("/") <= 1
    )


def close_towers(kind: str, name: str) -> list[str]:
    """Presets, their hub ids and repositories in the hub cache whose names are close to one that is not there."""
    known = {name: None for name, preset in TOWER_PRESETS.items() if preset["kind"] == kind}
    ids = {TOWER_PRESETS[preset]["name_or_path"]: None for preset in known}
    cached = {
        folder.name.removeprefix("models--").replace("--", "/", 1): None
        for folder in Path(constants.HF_HUB_CACHE).glob("models--*")
    }
    lower = {one.lower(): one for one in (*known, *ids, *cached) if one != name}
    return [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=3)]


def _has(location: str, file: str, revision: str | None) -> bool:
    if os.path.isdir(location):
        return os.path.isfile(os.path.join(location, file))
    found = cached_file(
        location,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return found is not None


__all__ = ["check_tower", "close_towers", "is_on_this_machine"]
