"""Results of `load_public_dataset` on disk, reused while the files they came from are unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.ipc

from ..files import aside_of, check_regular, full_disk_named, read_json
from .files import Inputs, file_state

_DONE = "inputs.arrow"


def cache_folder(cache_dir: str | os.PathLike | None, name: str, key: dict[str, Any]) -> Path:
    """Folder of the result of a load: named by everything that decides it, the code of this package included."""
    base = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE)
    text = json.dumps([key, _code_digest(), datasets.__version__], sort_keys=True, default=repr)
    return base / "adaptor_hf" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read_cached(folder: Path) -> tuple[datasets.DatasetDict, dict] | None:
    """The result in a folder and its report, or None if there is none or a file it came from has changed."""
    try:
        with pa.memory_map(str(check_regular(folder / _DONE))) as source:
            inputs = pyarrow.ipc.open_file(source).read_all()
        report = read_json(folder / "report.json")
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    for path, state in zip(inputs["path"].to_pylist(), inputs["state"].to_pylist(), strict=True):
        if file_state(path) != state:
            return None
    return _open(folder, report["rows_per_split"]), report


def write_cached(
    folder: Path,
    parts: dict[str, Iterable[pa.Table]],
    info: datasets.DatasetInfo,
    report: dict,
    inputs: Inputs,
) -> datasets.DatasetDict:
    """Write a result aside, a file a split, one table at a time, and move it into place when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(folder)
    aside.mkdir(mode=0o700)
    try:
        with full_disk_named(folder):
            schema = info.features.arrow_schema
            for split, tables in parts.items():
                path = str(aside / f"{split}.arrow")
                with pa.OSFile(path, "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
                    for table in tables:
                        writer.write_table(table)
            info.write_to_directory(str(aside))
            (aside / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
            states = {"path": list(inputs.states), "state": list(inputs.states.values())}
            table = pa.table(states, schema=pa.schema({"path": pa.string(), "state": pa.string()}))
            with pa.OSFile(str(aside / _DONE), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        _replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return _open(folder, report["rows_per_split"])


def _open(folder: Path, splits: Iterable[str]) -> datasets.DatasetDict:
    info = datasets.DatasetInfo.from_directory(str(folder))
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_file(str(folder / f"{split}.arrow"), info=info.copy(), split=split)
         for split in splits}
    )  # fmt: skip


def _replace(aside: Path, folder: Path) -> None:
    """Put a whole folder in the place of an older one; who has the older one open keeps it."""
    for _ in range(3):
        try:
            os.replace(aside, folder)
            return
        except OSError:
            # A folder with files in it cannot be replaced: move it away first. Another process may do the same.
            old = aside_of(folder, clear=False)
            with suppress(OSError):
                os.replace(folder, old)
            shutil.rmtree(old, ignore_errors=True)
    os.replace(aside, folder)


@cache
def _code_digest() -> str:
    """Digest of the code that loads data sets: another version may find other rows."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.glob("*.py"), *here.glob("public/*.py"), *here.glob("headings/*.json")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


__all__ = ["cache_folder", "read_cached", "write_cached"]
