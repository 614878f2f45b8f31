"""
Private mode of the scripts: ids as keyed hashes, and no report text, path or id in anything that is written or said.

It holds for the whole process from `start_private_mode` on: whatever builds a cache or writes a file asks here, so that
no call can forget to pass the key on.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ..files import read_json, write_aside
from ..options.fields import PATH, hidden_options, option, values_of
from .asked import ENVIRONMENT, environment_asks
from .gate import start_filter, stop_filter
from .keys import keyed_hash, load_key
from .messages import hide_messages, is_hiding, without_quotations
from .nearly_data import NEARLY_DATA

PRIVACY = "privacy"  # title of its options in --help
ID_COLUMNS = ("image_id", "patient_id", "study_id")
# Columns that a run may use; all others could hold anything.
KEPT_COLUMNS = (
    "image", *ID_COLUMNS, "view", "text", "sections", "sentences", "labels", "boxes", "box_labels", "mask", "split",
    "source_row", "sex", "age",
)  # fmt: skip
# Options of transformers that hold places; ours say so where they are declared.
_HIDDEN_OF_TRANSFORMERS = ("output_dir", "logging_dir", "run_name", "resume_from_checkpoint")

# Then the machine's name and the process's number: a temporary folder may be shared by machines.
_ASIDE = f"adaptor-private-{platform.node()}-"

logger = logging.getLogger(__name__)

_key: bytes | None = None
_names_to_say: frozenset[str] = frozenset()
_columns_to_keep: frozenset[str] = frozenset()
_OWNER_ONLY = 0o077


@dataclass(kw_only=True)
class PrivacyArguments:
    """Options of both scripts for data that must not leave the machine."""

    private: bool = option(
        False, "Write keyed hashes instead of ids, and no report or path; no tracker (docs/privacy.md).", group=PRIVACY
    )
    key_file: str | None = option(
        None, "File with the key of --private; made, for its owner only, if it is missing.", group=PRIVACY, privacy=PATH
    )
    allow_identifying_columns: bool = option(
        False, "With --private: take a table whose columns look like names or birth dates.", group=PRIVACY,
        advanced=True,
    )  # fmt: skip
    allow_push: bool = option(
        False, "With --private: let --push_to_hub send the fixed list of files.", group=PRIVACY, advanced=True
    )
    private_columns: list[str] = option(
        [], "With --private: store these after all, which nearly are images or reports.", group=PRIVACY, advanced=True,
        choices=list(NEARLY_DATA), metavar="NAME",
    )  # fmt: skip


def start_private_mode(arguments: PrivacyArguments, places: Iterable[str | None] = ()) -> bool:
    """
    Switch the process to private mode if it was asked for, by `--private` or by `ADAPTOR_PRIVATE=1`.

    From here on what is written to stdout, stderr and logs has paths, file names and quoted values cut out, data sets
    that the library would keep in its cache go to a folder that is deleted at exit, and only the owner can read what is
    written.

    Args:
        arguments (`PrivacyArguments`): Of the script.
        places (`Iterable[str]`): Paths that were given; they are cut out of messages even where they look like words.

    Returns:
        `bool`: Whether private mode is on.

    Raises:
        ValueError: without a key file, or for an option that needs private mode.
        PermissionError: others than its owner may read the key file.
    """
    if not _asked_for(arguments):
        if given := [name for name in ("key_file", "allow_identifying_columns", "allow_push", "private_columns")
                     if getattr(arguments, name)]:  # fmt: skip
            raise ValueError(f"--{' and --'.join(given)} would have no effect without --private.")
        stop_filter()
        return False
    if arguments.key_file is None:
        raise ValueError("--private needs --key_file: the file with the key of the ids. It is made if it is missing.")
    arguments.private = True
    start_filter()
    hide_messages([*places, arguments.key_file])
    _keep_data_sets_aside()
    os.umask(_OWNER_ONLY)
    _set_key(load_key(arguments.key_file, create=True))
    global _names_to_say, _columns_to_keep
    _columns_to_keep = frozenset(arguments.private_columns)
    given = (*getattr(arguments, "class_name", ()), getattr(arguments, "positive_label", None))
    _names_to_say = frozenset(name.strip() for name in given if name)
    return True


def hide_place(place: str | os.PathLike) -> None:
    """Where messages are filtered, cut a place that no option named out of them too."""
    if is_hiding():
        hide_messages([str(place)])


def check_private_mode(arguments: PrivacyArguments | None = None) -> None:
    """
    Stop where private mode was asked for and is not on, as in a command that does not know it.

    Raises:
        ValueError: saying what knows it.
    """
    if _key is None and _asked_for(arguments):
        raise ValueError(
            f"--private or {ENVIRONMENT} asks for private mode, which this command does not have. Use "
            "train_pretrain.py or train_downstream.py, or in Python `with private_mode(key):` (docs/privacy.md)."
        )


def _asked_for(arguments: PrivacyArguments | None) -> bool:
    return environment_asks() or (arguments is not None and arguments.private)


def speaks_privately() -> bool:
    """Whether messages must have nothing of the user's tables: in private mode, and where messages are filtered."""
    return _key is not None or is_hiding()


@contextmanager
def private_mode(key: bytes, columns: Iterable[str] = ()) -> Iterator[None]:
    """
    Private mode of caches and files within a block, in Python; messages and data sets' caches are left alone. Of the
    files that the process writes within the block, only its owner can read any.

    Args:
        key (`bytes`): As of `load_key`.
        columns (`Iterable[str]`): What a cache may store though it nearly is the data, see `nearly_data.NEARLY_DATA`.

    Raises:
        ValueError: a name that is none of these.
    """
    global _columns_to_keep
    if unknown := sorted({*columns} - NEARLY_DATA.keys()):
        raise ValueError(f"columns must be of {', '.join(NEARLY_DATA)}, got {', '.join(map(repr, unknown))}.")
    before, columns_before = _key, _columns_to_keep
    mask = os.umask(_OWNER_ONLY)
    _set_key(key)
    _columns_to_keep = frozenset(columns)
    try:
        yield
    finally:
        os.umask(mask)
        _set_key(before)
        _columns_to_keep = columns_before


def is_private() -> bool:
    """Whether the process is in private mode."""
    return _key is not None


def private_key() -> bytes | None:
    """The key of the ids; None outside private mode. It is for digests that stay in the run folder, never written."""
    return _key


def names_to_say() -> frozenset[str]:
    """Names of classes and groups that the options allow."""
    return _names_to_say


def key_name() -> str | None:
    """16 hex digits that tell one key from another and say nothing about it; None outside private mode."""
    return None if _key is None else hashlib.blake2b(b"adaptor_hf key name", digest_size=8, key=_key).hexdigest()


def keyed_digests(digests: np.ndarray) -> np.ndarray:
    """
    Digests of files and texts, made keyed in private mode: who knows a report could else look up whether it is there.

    Args:
        digests (`np.ndarray` of shape `(n,)` and dtype `S16`): All-zero ones stand for nothing and stay.

    Returns:
        `np.ndarray` of the same shape and dtype; outside private mode the same one.
    """
    if _key is None or not len(digests):
        return digests
    raw, size = np.ascontiguousarray(digests).tobytes(), digests.dtype.itemsize
    parts = (raw[start : start + size] for start in range(0, len(raw), size))
    keyed = (part if not any(part) else hashlib.blake2b(part, digest_size=size, key=_key).digest() for part in parts)
    return np.frombuffer(b"".join(keyed), dtype=digests.dtype)


def private_name(value: str) -> str:
    """A path, file name or id as a keyed hash; outside private mode as it is, and nothing stays nothing."""
    return value if _key is None or not value else keyed_hash(value, _key)


def private_reason(reason: str) -> str:
    """What is wrong with an image, without the details that a decoder quotes from the file."""
    return reason if _key is None else reason.partition(":")[0]


def error_text(error: BaseException) -> str:
    """The message of an error; in private mode without what a library's error quotes, see `without_quotations`."""
    return without_quotations(error) if speaks_privately() else str(error)


def private_options(*groups: Any) -> dict[str, Any]:
    """
    Options of a run for a record: in private mode, places and parts of the user's table as keyed hashes.

    Args:
        groups: Instances of dataclasses of options, or of `TrainingArguments`. Of our own, the declarations say what an
            option can hold.
    """
    found = {}
    for group in groups:
        hidden = hidden_options(group) | set(_HIDDEN_OF_TRANSFORMERS)
        for name, value in values_of(group).items():
            found[name] = value if _key is None else _hashed(value) if name in hidden else without_paths(value)
    return found


def without_paths(value: Any) -> Any:
    """In private mode, a JSON value with every string that has a slash or backslash as a keyed hash, at any depth."""
    if _key is None:
        return value
    if isinstance(value, Mapping):
        return {str(name): without_paths(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, os.PathLike) or (isinstance(value, str) and re.search(r"[/\\]", value)):
        return keyed_hash(str(value), _key)
    return value


def private_words(value: Any) -> Any:
    """In private mode, a JSON value with every string as a keyed hash, at any depth."""
    if _key is None:
        return value
    if isinstance(value, list | tuple):
        return [private_words(item) for item in value]
    return keyed_hash(value, _key) if isinstance(value, str) else value


def rewrite_without_paths(path: str | os.PathLike) -> None:
    """In private mode, replace the paths in a JSON file that a library has written."""
    if _key is None:
        return
    path = Path(path)
    value = without_paths(read_json(path))
    write_aside(path, json.dumps(value, indent=2) + "\n")


def check_private_cache(manifests: Iterable[Mapping[str, Any]]) -> None:
    """
    In private mode, refuse a ready cache that was built without it, or with another key.

    Args:
        manifests: The manifests of its folders of images and texts.

    Raises:
        ValueError: saying which.
    """
    if _key is None:
        return
    names = {one.get("identity", {}).get("private") for one in manifests}
    if names != {key_name()}:
        found = "without --private" if None in names else "with another key"
        raise ValueError(f"The cache was built {found}: it would carry its ids on. Build it anew with --private.")


def check_private_columns(*asked: Mapping[str, Any]) -> None:
    """
    In private mode, refuse to store what nearly is an image or a text unless it was named a second time.

    A pooled vector, and the means of whole earlier maps (`shallow`), are one vector of a whole image or text: kept as
    always. What has a value for each place or token is refused.

    Args:
        asked: Of images and of texts, what is asked for by name: with a value that is not empty.

    Raises:
        ValueError: naming all of it, and what to do.
    """
    if _key is None:
        return
    names = [name for one in asked for name, value in one.items() if value and name in NEARLY_DATA]
    refused = [name for name in dict.fromkeys(names) if name not in _columns_to_keep]
    if refused:
        reasons = "; ".join(f"{name} ({NEARLY_DATA[name]})" for name in refused)
        raise ValueError(
            f"Private mode does not store {reasons}. Leave it out; or, if the cache is kept as the images and reports "
            f"themselves are, name it a second time: --private_columns {' '.join(refused)}, in Python "
            "private_mode(key, columns=...) (docs/threat_model.md)."
        )


def _hashed(value: Any) -> Any:
    if value is None or isinstance(value, bool) or value == []:
        return value
    return [_hashed(item) for item in value] if isinstance(value, list | tuple) else keyed_hash(str(value), _key)


def _set_key(key: bytes | None) -> None:
    global _key
    _key = key


def _keep_data_sets_aside() -> None:
    import datasets

    _remove_left_behind()
    folder = tempfile.mkdtemp(prefix=f"{_ASIDE}{os.getpid()}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    datasets.config.HF_DATASETS_CACHE = Path(folder)


def _remove_left_behind() -> None:
    """Folders of private runs on this machine that were killed with SIGKILL, or lost with the power."""
    own = os.getuid() if hasattr(os, "getuid") else 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_ASIDE}*-*"):
        process = folder.name.removeprefix(_ASIDE).partition("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)) and folder.stat().st_uid == own:
            shutil.rmtree(folder, ignore_errors=True)


__all__ = [
    "PrivacyArguments",
    "check_private_cache",
    "check_private_columns",
    "check_private_mode",
    "error_text",
    "hide_place",
    "is_private",
    "key_name",
    "keyed_digests",
    "names_to_say",
    "private_key",
    "private_mode",
    "private_name",
    "private_options",
    "private_reason",
    "private_words",
    "rewrite_without_paths",
    "speaks_privately",
    "start_private_mode",
    "without_paths",
]
