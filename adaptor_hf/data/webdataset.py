"""Shards of img2dataset (webdataset): tars with an image, a caption and a JSON a sample, read in place."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import check_regular, open_regular, parse_json, printable
from .archives import Member, list_tar
from .files import IMAGE_SUFFIXES, list_files, record_input
from .splits import SPLIT_ALIASES

if TYPE_CHECKING:
    import pandas as pd

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass
class Shards:
    """
    What the tars of a folder hold.

    `rows` has `image` (member path relative to the root), `image_id` ("00000/000000012": shard and key), `text` (str or
    None), `split` (of a folder named after one, else None) and `source`.
    """

    rows: pd.DataFrame
    samples: int = 0
    """Samples, with those that could not be downloaded."""
    dropped: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def find_shards(root: Path) -> list[str]:
    """
    Tars under `root`, relative to it, in order of their names.

    Raises:
        ValueError: There are only compressed tars.
    """
    shards = sorted(list_files(root, suffixes=(".tar",)).sizes)
    if not shards and (packed := sorted(list_files(root, suffixes=_COMPRESSED).sizes)):
        raise ValueError(
            f"{root}: the shards are compressed tars, such as {packed[0]}. Single images of those cannot be reached: "
            "unpack the compression, not the tar (gunzip and the like)."
        )
    return shards


def read_shards(root: Path, shards: list[str], num_proc: int = 1) -> Shards:
    """
    Samples of tars. A sample is the members of one name up to the first dot of the base name, wherever they stand.

    The text is the `.txt` member, or the `caption` of the `.json` member. What img2dataset could not download stands
    only in the parquet file beside the tar: it is counted. A tar that is cut short gives the samples that are whole.

    Args:
        num_proc: Processes; each takes whole tars.

    Raises:
        ValueError: A file is no tar.
    """
    import pandas as pd

    result = Shards(pd.DataFrame(), dropped={})
    frames = []
    for shard, (rows, dropped, faults) in zip(shards, _read_all(root, shards, num_proc), strict=True):
        failed = _failed((root / shard).with_suffix(".parquet"))
        record_input(root / shard)
        result.samples += len(rows) + failed + sum(dropped.values())
        for rule, count in (dropped | {"not downloaded, by the parquet file beside the tar": failed}).items():
            if count:
                result.dropped[rule] = result.dropped.get(rule, 0) + count
        result.faults += faults
        frame = pd.DataFrame(rows, columns=["key", "image", "text"], dtype=object)
        stem = shard.removesuffix(".tar")
        frame["image_id"] = stem + "/" + frame["key"]
        frame["source"] = shard + ":" + frame["key"]
        frame["split"] = next((SPLIT_ALIASES[part] for part in shard.lower().split("/") if part in SPLIT_ALIASES), None)
        frames.append(frame.drop(columns="key"))
    result.rows = pd.concat(frames, ignore_index=True) if frames else result.rows
    return result


def _read_all(root: Path, shards: list[str], num_proc: int) -> Iterator[tuple]:
    # "spawn" would need a guard in the user's script; a forked child runs no Arrow, whose threads it has not.
    pool = None
    if min(num_proc, len(shards) // 4) > 1 and "fork" in get_all_start_methods():
        pool = ProcessPoolExecutor(min(num_proc, len(shards) // 4), mp_context=get_context("fork"))
    with pool or nullcontext():
        yield from (pool.map if pool else map)(_read_shard, [root] * len(shards), shards)


def _read_shard(root: Path, shard: str) -> tuple[list[tuple], dict[str, int], list[str]]:
    """(key, image, text) of each sample; samples left out by rule; faults."""
    path = root / shard
    faults = []
    members, fault = list_tar(path)
    if fault:
        faults.append(f"{printable(shard)}: {fault} after {len(members)} members. Download it again.")
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for name, offset, size in members:
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        # macOS's tar writes a hidden "._name" beside each file.
        if not stem:
            continue
        parts = samples.setdefault(folder + slash + stem, {})
        if suffix.lower() in parts:
            faults.append(f"{printable(shard)}: the member {printable(name)} is there twice. The first is taken.")
            continue
        parts[suffix.lower()] = (offset, size)
    suffixes = {suffix[1:] for suffix in IMAGE_SUFFIXES}
    rows, dropped = [], {}
    with open_regular(path) as file:
        for key, parts in samples.items():
            image = next((suffix for suffix in parts if suffix in suffixes), None)
            if image is None:
                dropped["a sample without image"] = dropped.get("a sample without image", 0) + 1
                continue
            try:
                text = _text(file, parts)
            except ValueError as error:
                faults.append(f"{printable(shard)}, sample {printable(key)}: {error}")
                text = None
            rows.append((key, str(Member(shard, f"{key}.{image}", *parts[image])), text))
    return rows, dropped, faults


def _text(file, parts: dict[str, tuple[int, int]]) -> str | None:
    def content(suffix: str) -> str:
        offset, size = parts[suffix]
        file.seek(offset)
        try:
            return file.read(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the .{suffix} member is not UTF-8 (byte {error.start}).") from None

    if "txt" in parts:
        return content("txt")
    if "json" not in parts:
        return None
    try:
        caption = parse_json(content("json")).get("caption")
    except (ValueError, AttributeError):
        raise ValueError("the .json member is no JSON object.") from None
    return caption if isinstance(caption, str) else None


def _failed(parquet: Path) -> int:
    """How many samples img2dataset could not download."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not parquet.is_file():
        return 0
    try:
        if "status" not in pq.read_schema(check_regular(parquet)).names:
            return 0
        status = pq.read_table(parquet, columns=["status"])["status"]
    except (pa.ArrowInvalid, OSError):
        # The images and captions are in the tar; a damaged list costs only this count.
        return 0
    return pc.sum(pc.not_equal(status, "success")).as_py() or 0


__all__ = ["Shards", "find_shards", "read_shards"]
