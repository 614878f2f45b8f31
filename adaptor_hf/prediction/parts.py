"""Finished parts of a prediction on disk: what a killed run keeps."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from ..files import open_regular, parse_json, write_aside

logger = logging.getLogger(__name__)

FOLDER = ".prediction"
PART_ROWS = 512


class Parts:
    """
    Parts of `PART_ROWS` images, a file of JSON lines each, whole or absent, that names its plan and has a digest.

    Args:
        output_dir (`Path`): Of the prediction.
        plan (`str`): Name of the plan; parts of another one are none.
        rows (`int`): Of all images.
    """

    def __init__(self, output_dir: Path, plan: str, rows: int) -> None:
        self.folder, self.plan = output_dir / FOLDER, plan
        starts = range(0, rows, PART_ROWS)
        self.rows = [range(start, min(start + PART_ROWS, rows)) for start in starts]

    def missing(self, is_whole: Callable[[range, list[dict[str, Any]]], bool] = lambda rows, lines: True) -> list[int]:
        """
        Numbers of the parts that are not there, or damaged, which is said.

        Args:
            is_whole (`Callable`): Of a part's rows and lines, whether what was written beside it is there.
        """
        found = []
        for number, rows in enumerate(self.rows):
            lines = self._lines(number)
            if lines is None or not is_whole(rows, [parse_json(line) for line in lines]):
                found.append(number)
        return found

    def write(self, number: int, lines: Sequence[dict[str, Any]]) -> None:
        """
        Write a part, a line for each of its rows.

        Raises:
            OSError: the folder cannot be written; nothing half-written is kept.
        """
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        header = {"plan": self.plan, "part": number, "rows": len(lines), "digest": _digest(text)}
        write_aside(self._path(number), f"{json.dumps(header)}\n{text}", sync=True)

    def read(self) -> Iterator[tuple[range, list[dict[str, Any]]]]:
        """Rows and lines of every part, one part in memory at a time.

        Raises:
            ValueError: a part is damaged or gone; the same command computes it again.
        """
        for number, rows in enumerate(self.rows):
            if (lines := self._lines(number)) is None:
                raise ValueError(
                    f"Part {number} of {len(self.rows)} was damaged after it was written. Check the disk, and run the "
                    "same command again: this part is computed again, all others are kept."
                )
            yield rows, [parse_json(line) for line in lines]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.jsonl"

    def _lines(self, number: int) -> list[str] | None:
        path = self._path(number)
        if not path.is_file():
            return None
        with open_regular(path) as file:
            first, _, text = file.read().decode("utf-8", "replace").partition("\n")
        try:
            header = parse_json(first)
            whole = header["digest"] == _digest(text) and (header["part"], header["rows"]) == (
                number, len(self.rows[number])
            )  # fmt: skip
            current = header["plan"] == self.plan
        except (ValueError, KeyError, TypeError):
            whole = current = False
        if not whole:
            logger.warning("Part %d of %d is damaged, and is computed again.", number, len(self.rows))
        return text.splitlines() if whole and current else None


def _digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8"))


__all__ = ["FOLDER", "PART_ROWS", "Parts"]
