"""A whole prediction: model and images, a plan, the parts that are missing, the files of the result, a record."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from ..data.table_arguments import TableArguments
from ..embeddings.ranks import Ranks
from ..file_records import check_model, content_sha256, differences, read_json_object
from ..files import write_aside
from ..folder_lock import FolderLock
from ..privacy.mode import PrivacyArguments, key_name, private_options
from ..progress import progress
from ..training.report import package_versions
from .arguments import PRIVACY_OPTIONS, TABLE_OPTIONS, PredictionArguments
from .images import Images, load_images
from .models import DETECTION, SEGMENTATION, Loaded, load_model
from .parts import FOLDER, Parts
from .reading import Pictures, read_batches
from .scoring import Picture, score
from .writing import (
    BOXES,
    FAULTS,
    MASKS,
    PREDICTIONS,
    content_digest,
    faults_in_words,
    mask_name,
    mask_png,
    masks_are_there,
    masks_digest,
    write_results,
    written_digests,
)

RECORD = "prediction.json"
VERSION = 1
_PLAN = "plan.json"
_DIFFERENT = {
    "model": "the model (its weights, image processing or classes)",
    "images": "the images (their list, or a file that was changed since)",
    "threshold": "--threshold",
    "dtype": "--dtype",
    "private_key": "private mode or its key",
    "version": "the version of this package's predictions",
}
# What may lie in a folder of somebody else's making.
_HARMLESS = (".log", ".out", ".err", ".lock", ".holder", "requeue")


def predict(
    arguments: PredictionArguments, table: TableArguments | None = None, privacy: PrivacyArguments | None = None
) -> dict[str, Any]:
    """
    Predict with a saved model, or go on with a prediction that was stopped. Private mode, where it is asked for, is on.

    Args:
        arguments (`PredictionArguments`): Model, images, output folder.
        table (`TableArguments`, *optional*): How a table is read.
        privacy (`PrivacyArguments`, *optional*): For tables with columns that look like names.

    Returns:
        `dict`: The record, as `prediction.json` in the output folder has it.

    Raises:
        FileNotFoundError: no such model or images.
        ValueError: a model that predicts nothing, an output folder of something else, a prediction that was begun with
            other options, or no image that can be read.
        BlockingIOError: another process writes to the output folder.
    """
    table, privacy = table or TableArguments(), privacy or PrivacyArguments()
    ranks = Ranks()
    output_dir = Path(arguments.output_dir)
    ranks.on_main(lambda: _check_folder(output_dir))
    lock = FolderLock(output_dir, "prediction", what="prediction", strict=False)
    ranks.on_main(lock.acquire)
    try:
        return _predict(arguments, table, privacy, ranks, output_dir)
    finally:
        if ranks.is_main:
            lock.release()


def _predict(
    arguments: PredictionArguments, table: TableArguments, privacy: PrivacyArguments, ranks: Ranks, output_dir: Path
) -> dict[str, Any]:
    started, device = time.time(), _device(arguments.device, ranks)
    state = ranks.on_main(lambda: check_model(arguments.model).state)
    images = load_images(arguments, table, privacy)
    loaded = load_model(arguments, table, device)
    plan = ranks.on_main(lambda: {
        "version": VERSION, "model": loaded.digest, "images": images.digest(), "threshold": arguments.threshold,
        "dtype": arguments.dtype, "private_key": key_name(),
    })  # fmt: skip
    # Each process has listed the images and loaded the model itself.
    own = plan | {"model": loaded.digest, "images": images.digest()}
    ranks.together(lambda: _check_same(plan, own), "the prediction")
    earlier = ranks.on_main(lambda: _prepare(output_dir, plan, arguments.overwrite))
    if earlier is not None:
        return earlier | {"computed": 0}
    parts = Parts(output_dir, content_sha256(plan), len(images))
    missing = ranks.on_main(lambda: parts.missing(lambda rows, lines: masks_are_there(output_dir, images, rows, lines)))
    ranks.together(lambda: _compute(arguments, loaded, images, parts, missing, ranks), "the prediction")

    def finish() -> dict[str, Any]:
        if images.digest() != plan["images"]:
            raise ValueError(
                "Files of images were changed while they were read: what was predicted is not of what is there now. "
                "Run the same command with --overwrite when they stay as they are."
            )
        for rows, lines in parts.read():
            if not masks_are_there(output_dir, images, rows, lines):
                raise ValueError(
                    f"A mask of the rows {rows.start} to {rows.stop - 1} was changed after it was written. Run the "
                    "same command again: these rows are computed again, all others are kept."
                )
        counts = write_results(output_dir, images, loaded, parts, arguments.threshold)
        record = {
            "plan": plan,
            "kind": loaded.kind,
            "classes": loaded.written_names,
            "scores": loaded.scale if loaded.kind not in (SEGMENTATION, DETECTION) else None,
            "reading": loaded.reading,
            "model_check": state,
            "images": {"all": len(images), "predicted": counts["predicted"], "faults": faults_in_words(counts)},
            "boxes": counts["boxes"],
            "options": _options(arguments, table, privacy),
            "versions": package_versions() | {"python": platform.python_version()},
            "machine": {"device": str(device), "processes": ranks.world, "threads": torch.get_num_threads()},
            "seconds": round(time.time() - started, 1),
            "files": written_digests(output_dir),
            "masks": masks_digest(output_dir),
        }
        write_aside(output_dir / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        parts.remove()
        return record

    return ranks.on_main(finish) | {"computed": sum(len(parts.rows[number]) for number in missing)}


def _options(arguments: PredictionArguments, table: TableArguments, privacy: PrivacyArguments) -> dict[str, Any]:
    """Those of this command; in private mode places and columns are keyed hashes."""
    return private_options(arguments) | {
        name: value
        for names, group in ((TABLE_OPTIONS, table), (PRIVACY_OPTIONS, privacy))
        for name, value in private_options(group).items()
        if name in names
    }


def _device(asked: str | None, ranks: Ranks) -> str:
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and ranks.world > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return asked


def _check_folder(output_dir: Path) -> None:
    """Refuse a folder that holds something else, before anything is loaded."""
    if not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file, expected a folder.")
    if (output_dir / RECORD).is_file() or (output_dir / FOLDER / _PLAN).is_file():
        return
    others = [path for path in output_dir.iterdir() if path.name != FOLDER and not path.name.endswith(_HARMLESS)]
    if others:
        raise ValueError(
            f"--output_dir {output_dir} holds {len(others)} files or folders that no prediction made, such as those of "
            "another run. Choose a new folder."
        )


def _check_same(plan: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise ValueError where this process has found other images or another model than the first one."""
    if different := [_DIFFERENT[name] for name in plan if plan[name] != own[name]]:
        raise ValueError(
            f"The processes have found different things: {', '.join(different)}. Files changed, or arrived, while they "
            "started: run the command again when they stay as they are."
        )


def _prepare(output_dir: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """
    Write the plan, or see that it is the one that is there.

    Returns:
        The record of a finished prediction with this plan, whose files are as they were.
    """
    record, begun = _read(output_dir / RECORD), _read(output_dir / FOLDER / _PLAN)
    found = begun if begun is not None else None if record is None else record.get("plan")
    if found is not None and not overwrite:
        if different := [name for name in _DIFFERENT if found.get(name) != plan[name]]:
            whats = ", ".join(_DIFFERENT[name] for name in different)
            raise ValueError(
                f"--output_dir {output_dir} holds a prediction that was {'begun' if begun else 'made'} with something "
                f"else: {whats}. Choose another --output_dir, or pass --overwrite, which deletes what is there."
            )
        if begun is None:
            changed = differences(output_dir, record["files"], RECORD)
            if not changed and record.get("masks") != masks_digest(output_dir):
                changed = [f"{MASKS}: a mask is missing, new or changed."]
            if changed:
                raise ValueError(
                    f"--output_dir {output_dir} holds this prediction, finished, and its files were changed since: "
                    f"{changed[0]} Pass --overwrite to make them anew."
                )
            return record
    elif found is not None:
        _remove(output_dir)
    (output_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    write_aside(output_dir / FOLDER / _PLAN, json.dumps(plan) + "\n", sync=True)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found = read_json_object(path)
    if path.name == RECORD and not (isinstance(found.get("plan"), dict) and isinstance(found.get("files"), dict)):
        raise ValueError(f"{path} is damaged, or of another program. Choose another --output_dir.")
    return found


def _remove(output_dir: Path) -> None:
    # What says whose they are goes last: a kill in between leaves a prediction, and no folder of somebody else.
    for name in (PREDICTIONS, FAULTS, BOXES):
        (output_dir / name).unlink(missing_ok=True)
    shutil.rmtree(output_dir / MASKS, ignore_errors=True)
    (output_dir / RECORD).unlink(missing_ok=True)
    shutil.rmtree(output_dir / FOLDER, ignore_errors=True)


def _compute(
    arguments: PredictionArguments, loaded: Loaded, images: Images, parts: Parts, missing: list[int], ranks: Ranks
) -> None:
    """The parts of this rank, one after the other."""
    mine = missing[ranks.index :: ranks.world]
    on_cuda = loaded.model.device.type == "cuda"
    size = arguments.batch_size or (64 if on_cuda else 4)
    batches = [
        range(start, min(start + size, parts.rows[number].stop))
        for number in mine
        for start in range(parts.rows[number].start, parts.rows[number].stop, size)
    ]
    workers = arguments.num_workers if arguments.num_workers is not None else _worker_count(on_cuda, ranks.world)
    ends = {parts.rows[number].stop: number for number in mine}
    masks = parts.folder.parent / MASKS
    if loaded.kind == SEGMENTATION:
        masks.mkdir(exist_ok=True)
    done = 0 if not ranks.is_main else len(images) - sum(len(parts.rows[number]) for number in missing)
    mine_rows = sum(len(parts.rows[number]) for number in mine)
    lines: list[dict[str, Any]] = []
    with progress(done + mine_rows, "predict", shown=ranks.is_main, unit="images", initial=done) as bar:
        for rows, batch in zip(batches, read_batches(Pictures(images, loaded, batches), workers), strict=True):
            lines += _lines(arguments, loaded, images, rows, batch, masks)
            if rows.stop in ends:
                parts.write(ends[rows.stop], lines)
                lines = []
            bar.update(len(rows))


def _lines(
    arguments: PredictionArguments, loaded: Loaded, images: Images, rows: range, batch: list, masks: Path
) -> list[dict[str, Any]]:
    """A line for each row of a batch; masks are written."""
    pictures = [item for item in batch if isinstance(item, Picture)]
    scored = dict(zip([item.row for item in pictures], score(loaded, pictures, arguments.threshold), strict=True))
    faults = dict(item for item in batch if not isinstance(item, Picture))
    if loaded.kind == SEGMENTATION:
        for row, named in zip(rows, images.named(rows.start, rows.stop), strict=True):
            if row in scored:
                content = mask_png(scored[row].mask, len(loaded.names))
                write_aside(masks / mask_name(named["source_row"], named["image_id"]), content, sync=True)
                scored[row].values["mask"] = content_digest(content)
    return [scored[row].values if row in scored else {"fault": faults[row]} for row in rows]


def _worker_count(on_cuda: bool, world: int) -> int:
    """Processes a rank: all cores but one for CUDA, half of them for the CPU, which computes too."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, (cores // world - 1) if on_cuda else cores // world // 2)


__all__ = ["RECORD", "predict"]
