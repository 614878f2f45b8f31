"""Bundles: towers in one folder, with digests and terms, to be carried to a machine without network."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from ..conversion import load_checkpoint
from ..files import check_regular, file_sha256, folder_written_aside, read_json, write_aside
from ..random_specs_adaptor import PREFIX as RANDOM
from ..tower_bundles_adaptor import (
    FORMAT,
    MANIFEST,
    check_files,
    give_weights_the_mode_of_config,
    read_manifest,
)
from ..tower_folders_adaptor import copy_tower, has_adapter, is_tower_folder, read_tower_file
from ..tower_sources_adaptor import is_timm_config, package_folder, timm_hub_id
from ..towers_adaptor import SPEC_KEYS, load_text_tower, load_vision_tower
from ..xrv_towers_adaptor import NUM_CLASSES, PREFIX, XRV_CLASSIFIERS, classifier_weights, is_classifier, pretrained_cfg
from .presets import TOWER_PRESETS
from .terms import TERM_KEYS, terms_of

logger = logging.getLogger(__name__)

# What a tower needs: configurations, tokenizers, image processors, the card with the licence. No code.
SMALL_FILES = ("*.json", "vocab.txt", "merges.txt", "*.model", "1_Pooling/config.json", "README.md", "LICENSE*")
SAFETENSORS = ("model.safetensors", "model-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")
ELSEWHERE = ("onnx/*", "openvino/*", "*.onnx*", "flax*", "tf_*")


def bundle_towers(names: list[str], folder: str | os.PathLike, token: str | bool | None = None) -> dict[str, Any]:
    """
    Downloads towers at their pinned revisions into a bundle, and loads each from there to prove it whole.

    Only safetensors, configurations, tokenizers and cards are kept. Weights that exist as a pickle only
    (pytorch_model.bin, torchxrayvision's .pt) are read with weights_only=True and written as safetensors. What the
    bundle has already is left; a tower appears in it when it is whole.

    Args:
        names: presets, `OWNER/NAME` or `OWNER/NAME@REVISION` of the Hub, `timm:NAME`, `xrv:NAME`, or the folder of a
            tower that a run trained, such as `RUN/vision_tower`; of low-rank weights (LoRA) the tower that they are on
            comes along. Digests of training rows do not.
        folder: of the bundle; made if it does not exist.
        token: of the Hub, for gated repositories.

    Returns:
        The manifest's entries by name.

    Raises:
        OSError: a tower cannot be downloaded, or its checkpoint lacks weights.
        ValueError: a name is no tower, or a pickle names other classes than tensors.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    for name in [*names, *_origins(names)]:
        trained = is_tower_folder(name)
        entry = _facts_of_trained(name) if trained else known_facts(name)
        # One that was trained again has the name that it had.
        if not trained and _is_there(folder, entries, entry):
            logger.info(f"{name}: is in the bundle already.")
            continue
        # The folder's name is a path's part; hub ids have a slash.
        entry["folder"] = entry["preset"] or entry["name_or_path"].replace("/", "--")
        with folder_written_aside(folder / entry["folder"]) as tower:
            if trained:
                copy_tower(name, tower)
                (load_vision_tower if entry["kind"] == "vision" else load_text_tower)(str(tower), local_files_only=True)
            else:
                _fetch(entry, tower, token)
                _prove(entry, tower)
            give_weights_the_mode_of_config(tower)
            entry["files"] = list_files(tower)
            shutil.rmtree(folder / entry["folder"], ignore_errors=True)
        entries[entry["folder"]] = entry
        write_manifest(folder, entries)
        size = sum(file["size"] for file in entry["files"].values())
        logger.info(f"{name}: revision {entry['revision']}, {len(entry['files'])} files, {size / 1e6:.0f} MB.")
    return entries


def _origins(names: list[str]) -> list[str]:
    """What low-rank weights among the towers are on, where it does not stand beside them."""
    found = []
    for name in filter(is_tower_folder, names):
        base = read_tower_file(name)["base_tower"]
        if has_adapter(name) and not (Path(name) / "config.json").is_file():
            revision = f"@{base['revision']}" if base.get("revision") and not base.get("preset") else ""
            found.append(base.get("preset") or f"{base['name_or_path']}{revision}")
    return [name for name in dict.fromkeys(found) if name not in names]


def _facts_of_trained(place: str) -> dict[str, Any]:
    """An entry for the folder of a trained tower: called by its run and its own name, with its terms."""
    spec, folder = read_tower_file(place), Path(place).expanduser().absolute()
    entry = {key: spec.get(key) for key in ("kind", "library", "license", "pretraining_data")}
    entry |= {"name_or_path": f"{folder.parent.name}--{folder.name}", "revision": None, "preset": None}
    return entry | {key: value for key, value in terms_of(spec).items() if key in TERM_KEYS}


def known_facts(name: str) -> dict[str, Any]:
    """The part of a manifest's entry that is known before the download."""
    if name.startswith(RANDOM) or TOWER_PRESETS.get(name, {}).get("name_or_path", "").startswith(RANDOM):
        raise ValueError(
            f"{name!r} has no weights to bundle: they are drawn where it is loaded. Copy the tokenizer of a text tower "
            "as a folder."
        )
    plain, _, revision = name.partition("@")
    prefix, _, rest = plain.partition(":")
    library = {"timm": "timm", "xrv": "torchxrayvision"}.get(prefix)
    place = timm_hub_id(rest) if prefix == "timm" else rest if prefix == "xrv" else plain
    if is_classifier(plain):
        library, place = "timm", plain
    for preset, facts in TOWER_PRESETS.items():
        same = facts["name_or_path"] == place and library in (None, facts["library"])
        if plain == preset or (same and (revision or None) in (None, facts["revision"])):
            break
    else:
        preset, facts = None, {"name_or_path": place, "library": library}
        if prefix != "xrv" and place.count("/") != 1:
            raise ValueError(f"{name!r} is no preset and no OWNER/NAME, timm:NAME or xrv:NAME.")
    entry = {key: facts.get(key) for key in ("kind", "library", "name_or_path", "revision", "license")}
    entry |= {"preset": preset, "pretraining_data": facts.get("pretraining_data")}
    entry["revision"] = revision or entry["revision"]
    return entry | {key: value for key, value in terms_of(entry).items() if key in TERM_KEYS}


def _is_there(folder: Path, entries: dict[str, Any], entry: dict[str, Any]) -> bool:
    for name, other in entries.items():
        same = all(other[key] == entry[key] for key in ("name_or_path", "preset"))
        if same and entry["revision"] in (None, other["revision"]):
            try:
                check_files(name, folder / other["folder"], other["files"])
            except OSError as error:
                logger.warning(f"{error} It is bundled anew.")
                return False
            return True
    return False


def _fetch(entry: dict[str, Any], folder: Path, token: str | bool | None) -> None:
    """Fills a tower's folder; fills revision, library, kind and licence of the entry."""
    from safetensors.torch import save_file

    name = entry["name_or_path"]
    if entry["library"] == "torchxrayvision":
        tower = load_vision_tower(f"xrv:{name}")
        weights = {key: value.contiguous() for key, value in tower.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"library": "torchxrayvision", "weights": name}) + "\n")
        entry["kind"] = "vision"
    elif is_classifier(name):
        _write_classifier(name, folder)
        entry["kind"] = "vision"
    elif name.startswith("package:") and entry["library"] == "timm":
        load_vision_tower(entry["preset"]).model.save_pretrained(folder)
    elif name.startswith("package:"):
        source = package_folder(name.removeprefix("package:"))
        for pattern in (*SMALL_FILES, *SAFETENSORS):
            for file in source.glob(pattern):
                _copy(file, folder / file.relative_to(source))
    else:
        _fetch_from_hub(entry, folder, token)


def _write_classifier(name: str, folder: Path) -> None:
    """A folder as timm's, with the last layer: the supervised control reads it."""
    from safetensors.torch import save_file

    known = XRV_CLASSIFIERS[name.removeprefix(PREFIX)]
    save_file(classifier_weights(name, {}), folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architecture": known.architecture, "num_classes": NUM_CLASSES, "model_args": {"in_chans": 1}}
    config |= {"pretrained_cfg": pretrained_cfg(known.size) | {"num_classes": NUM_CLASSES}}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _fetch_from_hub(entry: dict[str, Any], folder: Path, token: str | bool | None) -> None:
    from huggingface_hub import snapshot_download

    request = {"repo_id": entry["name_or_path"], "revision": entry["revision"], "token": token}
    wanted = [*SMALL_FILES, *SAFETENSORS]
    snapshot = Path(snapshot_download(**request, allow_patterns=wanted, ignore_patterns=[*ELSEWHERE]))
    for pattern in wanted:
        for file in snapshot.glob(pattern):
            _copy(file, folder / file.relative_to(snapshot))
    if not any(folder.glob("*.safetensors")):
        snapshot = Path(snapshot_download(**request, allow_patterns=[*PICKLED]))
        _rewrite_pickles(entry["name_or_path"], snapshot, folder)
    if snapshot.parent.name == "snapshots":
        entry["revision"] = snapshot.name  # the commit, also where a branch or nothing was named
    config = read_json(folder / "config.json")
    entry["library"] = entry["library"] or ("timm" if is_timm_config(config) else "transformers")
    entry["kind"] = entry["kind"] or kind_of(entry["library"], folder)
    entry["license"] = entry["license"] or _license_of_card(folder)


def _rewrite_pickles(name: str, snapshot: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    files = [file for pattern in PICKLED for file in sorted(snapshot.glob(pattern))]
    if not files:
        raise OSError(f"{name} has neither model.safetensors nor pytorch_model.bin: nothing to bundle.")
    weights = {key: value for file in files for key, value in load_checkpoint(file).items()}
    # Tied weights share memory, which safetensors refuses: each gets its own.
    weights = {key: value.clone().contiguous() for key, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(check_regular(source), target)  # follows the hub cache's links


def kind_of(library: str, folder: Path) -> str | None:
    """ "vision" or "text" by what the network takes; None for a checkpoint with both halves."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if library == "timm":
        return "vision"
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type == "cxr-bert":
        return "text"
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        return None
    main_input = getattr(MODEL_MAPPING.get(type(config), None), "main_input_name", None)
    return {"pixel_values": "vision", "input_ids": "text"}.get(main_input)


def _license_of_card(folder: Path) -> str | None:
    from huggingface_hub import ModelCard

    file = folder / "README.md"
    return ModelCard.load(check_regular(file)).data.license if file.is_file() else None


def _prove(entry: dict[str, Any], folder: Path) -> None:
    """Loads the tower from its folder; a checkpoint with both halves is loaded as what it will be asked for."""
    spec = {key: value for key, value in TOWER_PRESETS.get(entry["preset"], {}).items() if key in SPEC_KEYS}
    spec |= {"library": entry["library"], "name_or_path": str(folder), "revision": None}
    for kind in [entry["kind"]] if entry["kind"] else ["vision", "text"]:
        load = load_vision_tower if kind == "vision" else load_text_tower
        load(spec | {"kind": kind}, local_files_only=True)


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size in bytes of every file of a tower's folder, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        file.relative_to(folder).as_posix(): {"sha256": file_sha256(file), "size": file.stat().st_size}
        for file in files
    }


def write_manifest(folder: Path, entries: dict[str, Any]) -> None:
    """Writes manifest.json aside and renames it."""
    write_aside(folder / MANIFEST, json.dumps({"format": FORMAT, "towers": entries}, indent=2) + "\n")


__all__ = ["bundle_towers", "known_facts", "list_files", "write_manifest"]
