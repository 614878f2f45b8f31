"""Identity of what goes into a cache: images, texts, and everything in a tower that determines its numbers."""

import json
import os
from pathlib import Path
from typing import Any

from ..data.content_keys import digest

# Of keys: raised when what a key covers changes.
KEY_VERSION = 1
# Fields that say where something came from, not what it computes.
_NOT_IN_KEY = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash", "processor_class"}


def json_key(value: Any, length: int = 16) -> str:
    """Hexadecimal digest of a JSON-able value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return digest(text.encode("utf-8")).hex()[:length]


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _clean(item) for name, item in value.items() if name not in _NOT_IN_KEY}
    return value


def _processor_state(processor) -> Any:
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is not None:
        # A padded or truncated call leaves its settings behind; they are no part of the vocabulary.
        return json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    if hasattr(processor, "get_vocab"):
        return [type(processor).__name__, processor.get_vocab()]
    return _clean(processor.to_dict())


def tower_identity(tower) -> dict:
    """What determines the numbers of a loaded tower: architecture, weights, pooling and processing; not its name."""
    from ..towers_adaptor import tower_digest

    spec = tower.spec
    config = getattr(tower, "config", None)
    return {
        "kind": spec["kind"],
        "library": spec["library"],
        "pooling": spec.get("pooling"),
        "hidden_size": int(tower.hidden_size),
        "architecture": json_key(_clean(config.to_dict())) if config is not None else _origin(spec),
        "weights": tower_digest(tower),
        "processor": json_key(spec.get("image_processor") or _processor_state(tower.processor)),
    } | _layers(spec)


def _origin(spec: dict) -> str:
    return (spec.get("base_tower") or spec)["name_or_path"]


def _layers(spec: dict) -> dict:
    """Of a spec or identity what it says of joined layers and of a cut: nothing for the last one alone."""
    return {name: value for name, value in spec.items() if name.startswith("layers") or name == "truncate_layers"}


def modality_key(identity: dict, dtype: str, max_text_length: int | None) -> str:
    """Key of one modality's folder. Rows are no part of it: new rows are added to the same folder."""
    return json_key([KEY_VERSION, identity, dtype, max_text_length])


def check_key(folder: Path, manifest: dict, advice: str) -> None:
    """Compare the key of a modality's folder with what it covers, as the manifest has it.

    Raises:
        ValueError: they differ.
    """
    key = modality_key(manifest["identity"], manifest["dtype"], manifest.get("max_text_length"))
    if key != manifest["key"]:
        raise ValueError(
            f"{folder} is damaged or was edited: its key is {manifest['key']}, and identity, dtype and max_text_length "
            f"in its manifest have the key {key}. {advice}"
        )


def check_tower(folder: Path, spec: dict, identity: dict, advice: str) -> None:
    """Compare a tower's spec with the identity that the key covers: in version 0.1 manifests have no digest.

    Raises:
        ValueError: pooling, layers, width or image processing are not those that the embeddings were made with.
    """
    processor = spec.get("image_processor")
    found = {"kind": spec.get("kind"), "pooling": spec.get("pooling"), "hidden_size": spec.get("hidden_size"),
             "processor": json_key(processor) if processor else None}  # fmt: skip
    wrong = [name for name, value in found.items() if value is not None and identity.get(name, value) != value]
    wrong += ["layers"] if _layers(spec) != _layers(identity) else []
    if wrong:
        raise ValueError(
            f"{folder} is damaged or was edited: {'image_processor' if wrong[0] == 'processor' else wrong[0]} of its "
            f"tower is not what the embeddings were made with. {advice}"
        )


def tower_files(name_or_spec: Any) -> list[list] | None:
    """Path, size and modification time of the files that a tower's name stands for, or None when not known.

    Towers of a bundle, local folders, hub ids in the local hub cache, and packages that carry weights are known.
    """
    from ..random_specs_adaptor import PREFIX
    from ..tower_bundles_adaptor import find_bundled
    from ..tower_folders_adaptor import folder_of_spec
    from ..tower_sources_adaptor import package_folder
    from ..towers_adaptor import TOWER_PRESETS
    from ..xrv_towers_adaptor import files_of_classifier, is_classifier

    if isinstance(name_or_spec, str):
        spec = TOWER_PRESETS.get(name_or_spec, {"name_or_path": name_or_spec})
    else:
        spec = name_or_spec
    name = str(spec.get("name_or_path") or "")
    if name.startswith(PREFIX):
        return None
    bundled = find_bundled(spec)
    if bundled is None and (spec.get("library") == "torchxrayvision" or name.startswith("xrv:")):
        files = files_of_classifier(name) if is_classifier(name) else []
        return _states(files) or None
    if bundled is not None:
        folder = bundled.folder
    elif spec.get("subfolder"):
        folder = Path(folder_of_spec(spec, {"local_files_only": True}))
    elif name.startswith("package:"):
        folder = package_folder(name.removeprefix("package:"))
    elif os.path.isdir(name):
        folder = Path(name)
    else:
        from huggingface_hub import snapshot_download

        try:
            # A revision that moves (a branch) is resolved by the hub cache as `from_pretrained` does offline.
            folder = Path(snapshot_download(name, revision=spec.get("revision"), local_files_only=True))
        except (OSError, ValueError):
            return None
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("1", "true", "True") and len(spec.get("revision") or "") != 40:
            return None
    found_files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return _states(found_files)


def _states(files: list[Path]) -> list[list]:
    stats = [(path, path.stat()) for path in files]
    return [[str(path), found.st_size, found.st_mtime_ns] for path, found in stats]
