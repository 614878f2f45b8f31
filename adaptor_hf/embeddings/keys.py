"""Identity of what goes into a cache: images, texts, and everything in a tower that determines its numbers."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.archives import container, parse_member, read_bytes
from .files import CACHE_VERSION, KEY_DTYPE

# Fields that say where something came from, not what it computes.
_NOT_IN_KEY = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash", "processor_class"}


def digest(data: bytes) -> bytes:
    """128-bit BLAKE2 digest."""
    return hashlib.blake2b(data, digest_size=16).digest()


def key_vector(digests: Iterable[bytes]) -> np.ndarray:
    """(n,) vector of 16-byte keys."""
    return np.frombuffer(b"".join(digests), dtype=KEY_DTYPE)


def json_key(value: Any, length: int = 16) -> str:
    """Hexadecimal digest of a JSON-able value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return digest(text.encode("utf-8")).hex()[:length]


def text_key(text: str) -> bytes:
    """Key of a text: the digest of its UTF-8 bytes."""
    return digest(text.encode("utf-8", "surrogatepass"))


def file_key(path: str) -> bytes:
    """Key of an image file that costs one `stat`: the digest of absolute path, size and modification time.

    For a member of an archive (`adaptor_hf.data.archives`) size and time are the archive's.

    Raises:
        OSError: the file is missing or not a regular file.
    """
    found = os.stat(container(path))
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return digest(f"{os.path.abspath(path)}\0{found.st_size}\0{found.st_mtime_ns}".encode("utf-8", "surrogateescape"))


def content_key(path: str) -> bytes:
    """Key of the content of a file, or of a member of an archive."""
    if parse_member(path) is not None:
        return digest(read_bytes(path))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


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
        "architecture": json_key(_clean(config.to_dict())) if config is not None else spec["name_or_path"],
        "weights": tower_digest(tower),
        "processor": json_key(spec.get("image_processor") or _processor_state(tower.processor)),
    }


def side_key(identity: dict, dtype: str, max_text_length: int | None) -> str:
    """Key of one side's folder. Rows are no part of it: new rows are added to the same folder."""
    return json_key([CACHE_VERSION, identity, dtype, max_text_length])


def tower_files(name_or_spec: Any) -> list[list] | None:
    """Path, size and modification time of the files that a tower's name stands for, or None when not known.

    Towers of a bundle, local folders, hub ids in the local hub cache, and packages that carry weights are known.
    """
    from ..tower_bundles_adaptor import find_bundled
    from ..tower_sources_adaptor import package_folder
    from ..towers_adaptor import TOWER_PRESETS

    if isinstance(name_or_spec, str):
        spec = TOWER_PRESETS.get(name_or_spec, {"name_or_path": name_or_spec})
    else:
        spec = name_or_spec
    name = str(spec.get("name_or_path") or "")
    bundled = find_bundled(spec)
    if bundled is None and (spec.get("library") == "torchxrayvision" or name.startswith("xrv:")):
        return None
    if bundled is not None:
        folder = bundled.folder
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
    stats = [(path, path.stat()) for path in found_files]
    return [[str(path), found.st_size, found.st_mtime_ns] for path, found in stats]
