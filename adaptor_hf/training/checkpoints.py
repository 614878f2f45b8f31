"""Checkpoints that are whole or absent: written aside, hashed into a manifest, renamed; checked before reading."""

import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from ..file_records import forget_manifest
from ..files import file_sha256, open_regular, read_json, write_aside
from ..objectives import Objective
from .terms import smaller_steps
from .tower_checkpoints import remove_stale_towers

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
VERSION = 1
# A name that neither Trainer nor `find_checkpoint` takes for a checkpoint.
UNFINISHED = "unfinished-"
UNFINISHED_MODEL = "unfinished-model"
RESUME = "--resume_from_checkpoint True"


def checkpoint_steps(output_dir: Path) -> dict[int, Path]:
    """The folders `checkpoint-N` of a run by N, in ascending order, whole or not."""
    found = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and folder.is_dir():
            found[int(match[1])] = folder
    return dict(sorted(found.items()))


def unfinished(checkpoint: Path) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return checkpoint.with_name(UNFINISHED + checkpoint.name)


def remove_unfinished(output_dir: Path) -> None:
    """Delete what a killed process left of a checkpoint that it was writing."""
    for folder in Path(output_dir).glob(f"{UNFINISHED}checkpoint-*"):
        shutil.rmtree(folder)


def finish_checkpoint(checkpoint: Path) -> None:
    """
    Give a written checkpoint its manifest (sizes and SHA-256 of all files), make it durable, and rename it to its name.

    Raises:
        OSError: if the disk is full or cannot be written.
    """
    folder = unfinished(checkpoint)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        # A rename may reach the disk before the data does; then a power cut leaves a named, empty file.
        with open_regular(path) as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_aside(folder / MANIFEST, json.dumps({"version": VERSION, "files": files}, indent=1), sync=True)
    for inside in (path for path in folder.rglob("*") if path.is_dir()):
        sync_folder(inside)
    sync_folder(folder)
    if checkpoint.exists():
        # A damaged one that this run went around, or one of a later step than the run was resumed from.
        shutil.rmtree(checkpoint)
    os.replace(folder, checkpoint)
    sync_folder(checkpoint.parent)


@contextmanager
def replacing(folder: Path, main: bool = True) -> Iterator[Path]:
    """
    A folder to save a model to, aside; then what was saved takes the place of what `folder` has under the same names, a
    folder as a whole. Towers of an earlier save that the new model does not name are deleted.

    Args:
        folder (`Path`): Of the model.
        main (`bool`): Whether this process writes.
    """
    aside = folder / UNFINISHED_MODEL
    replaced = aside / "replaced"
    if main:
        # What a killed process left there would pass for a part of this model.
        shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        if not main:
            return
        forget_manifest(folder)
        for path in sorted(aside.iterdir()):
            target = folder / path.name
            if path.is_dir() and target.is_dir():
                replaced.mkdir(exist_ok=True)
                os.replace(target, replaced / path.name)
            os.replace(path, target)
        remove_stale_towers(folder)
    finally:
        if main:
            for path in replaced.iterdir() if replaced.is_dir() else ():
                if not (folder / path.name).exists():
                    os.replace(path, folder / path.name)
            shutil.rmtree(aside, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can (Windows cannot)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rotate_checkpoints(output_dir: Path, newest: Path, best: str | None, limit: int | None) -> None:
    """
    Delete checkpoints until `limit` are left: those without manifest first, then the oldest ones, never `newest` (just
    written, so whole) nor `best`. Trainer's own rotation goes by modification time and may keep a damaged one instead.
    """
    if limit is None or limit <= 0:
        return
    folders = sorted(checkpoint_steps(output_dir).values(), key=lambda folder: (folder / MANIFEST).is_file())
    kept = {newest.resolve()} | ({Path(best).resolve()} if best is not None else set())
    extra = len(folders) - max(limit, len(kept))
    for folder in [folder for folder in folders if folder.resolve() not in kept][: max(0, extra)]:
        # Without its manifest it is no checkpoint any more, should the deletion be cut short.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def check_checkpoint(folder: Path) -> None:
    """
    Compare every file of a checkpoint with its manifest.

    Raises:
        FileNotFoundError: if the folder, its manifest or a file is missing.
        ValueError: if a file is truncated or damaged, or the manifest is of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist")
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}: the checkpoint was not finished, or not written by AdaptorTrainer"
        )
    try:
        manifest = read_json(path)
        version, files = manifest["version"], manifest["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}; this package reads version {VERSION}")
    for name, (size, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing from the checkpoint")
        if (found := file.stat().st_size) != size:
            raise ValueError(f"{file} has {found:,} bytes, its manifest says {size:,}: it is truncated or was replaced")
        if file_sha256(file) != digest:
            raise ValueError(f"{file} does not match its SHA-256: it is damaged")


def find_checkpoint(output_dir: str | os.PathLike, wanted: str | os.PathLike | bool) -> Path:
    """
    The checkpoint to resume from, checked.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        wanted (`str`, `os.PathLike` or `True`): A checkpoint's folder, or `True` for the last whole one of the run.
            Damaged ones are passed over with a warning that names what is wrong.

    Raises:
        ValueError: if the wanted checkpoint is missing, incomplete or damaged, or the run has no whole one.
    """
    output_dir = Path(output_dir)
    if wanted is not True:
        try:
            check_checkpoint(Path(wanted))
        except (OSError, ValueError) as error:
            raise ValueError(f"{error}. Copy it back, or go on from the last whole checkpoint: {RESUME}") from error
        return Path(wanted)
    for folder in sorted(output_dir.glob(f"{UNFINISHED}checkpoint-*")):
        logger.warning(f"{folder} was not finished when the run ended: it is passed over")
    problems = []
    for folder in reversed(checkpoint_steps(output_dir).values()):
        try:
            check_checkpoint(folder)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning(f"{problem}. Going on from {folder} instead")
        return folder
    if problems:
        raise ValueError(
            f"No whole checkpoint in {output_dir}: {'; '.join(problems)}. Copy one back, or start anew in another "
            "--output_dir."
        )
    raise ValueError(f"No valid checkpoint found in {output_dir}. Leave out --resume_from_checkpoint to start anew.")


def find_best(state: TrainerState, output_dir: Path) -> None:
    """Let a resumed run's state name its best checkpoint where that is now; none, with a warning, if it is damaged."""
    here = output_dir / f"checkpoint-{state.best_global_step}"
    if here.is_dir():
        # The state has the path of the time; the run may have been moved or copied since.
        state.best_model_checkpoint = str(here)
    try:
        if state.best_model_checkpoint is not None:
            check_checkpoint(Path(state.best_model_checkpoint))
    except (OSError, ValueError) as error:
        logger.warning(f"{error}. It was the best checkpoint so far: the best is now chosen from here on.")
        state.best_model_checkpoint = None
    if state.best_model_checkpoint is None:
        state.best_metric = state.best_global_step = None


class RunningLoss(TrainerCallback):
    """
    Carries over a resume what Trainer counts from zero there: the loss and the terms summed since the last log line
    (the first line would be a mean over fewer steps than in a run without interruption; each process has its own sums),
    and for the summary at the end the loss summed up to that line and the seconds of training.
    """

    FILE = "running_loss.json"

    def __init__(self, trainer: Trainer, checkpoint: Path | None) -> None:
        self.trainer = trainer
        self.checkpoint = checkpoint
        self.seconds_before = 0.0

    def state(self) -> dict:
        """What `write` keeps. All processes must call it together."""
        trainer = self.trainer
        own = trainer._tr_loss.item(), trainer.terms.state()
        of_all = [own]
        if trainer.args.world_size > 1:
            of_all = [None] * trainer.args.world_size
            torch.distributed.all_gather_object(of_all, own)
        return {
            "sums": [loss for loss, _ in of_all],
            "terms": [terms for _, terms in of_all],
            "last_logged": trainer._globalstep_last_logged,
            "logged_sum": trainer._total_loss_scalar,
            "seconds": self.seconds_before + time.monotonic() - self.started,
        }

    @classmethod
    def write(cls, state: dict, folder: Path) -> None:
        write_aside(folder / cls.FILE, json.dumps(state))

    def on_train_begin(self, args: TrainingArguments, *_, **kwargs) -> None:
        self.started = time.monotonic()
        if self.checkpoint is None:
            return
        state = read_json(self.checkpoint / self.FILE)
        sums = state["sums"]
        # With another number of processes only the mean is what it was; that is what is logged.
        own = sums[args.process_index] if len(sums) == args.world_size else sum(sums) / len(sums)
        self.trainer._tr_loss.fill_(own)
        if "terms" in state:
            self.trainer.terms.load(state["terms"], args.process_index, args.world_size)
        self.trainer._globalstep_last_logged = state["last_logged"]
        # Checkpoints of version 0.1 have no sum, but the log's means, and no time.
        logged = state.get("logged_sum")
        self.trainer._total_loss_scalar = sum_of_logged(self.trainer.state.log_history) if logged is None else logged
        self.seconds_before = state.get("seconds", 0.0)
        if len(sums) != args.world_size:
            logger.warning(
                f"{self.checkpoint} was written by {len(sums)} process(es), this run has {args.world_size}: random "
                "numbers, such as dropout's, differ from those of a run without interruption"
            )


def sum_of_logged(log_history: list[dict[str, float]]) -> float:
    """The loss summed over all steps up to the last log line that has one: each is a mean since the one before."""
    total, before = 0.0, 0
    for entry in log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    return total


def check_writable(folder: Path) -> None:
    """Raise OSError if a folder cannot be made or written to."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def refuse_broken_weights(parts: Sequence[torch.nn.Module], step: int) -> None:
    """Raise FloatingPointError if a parameter of the model or of the objective is NaN or infinite."""
    objective = next((part for part in parts if isinstance(part, Objective)), None)
    named = (pair for part in parts for pair in part.named_parameters())
    broken = [name for name, value in named if not value.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"Weights became NaN or infinite before step {step} ({', '.join(broken[:3])}). They are not saved. Go on "
            f"from the last checkpoint with {smaller_steps(objective)}."
        )


def together(write: Callable[[], None], folder: Path, wait: bool = True) -> None:
    """
    Write on every process, then wait for all. Where one fails, all raise, instead of waiting for it for ever.

    Args:
        write (`Callable`): Writes this process's files.
        folder (`Path`): What the message names.
        wait (`bool`, defaults to `True`): `False` where one process alone writes, and the others do not call this.

    Raises:
        OSError: if the disk is full or cannot be written, here or on another process.
    """
    dist = torch.distributed
    failure: Exception | None = None
    try:
        write()
    except Exception as error:
        failure = error
    reasons: list[str | None] = [None if failure is None else f"{type(failure).__name__}: {failure}"]
    if wait and dist.is_initialized() and dist.get_world_size() > 1:
        reasons = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None and not is_write_error(failure):
        raise failure
    if found := [reason for reason in reasons if reason is not None]:
        raise OSError(
            f"cannot write {folder}: {' '.join(found[0].split())}. Nothing half-written was kept, and earlier "
            f"checkpoints are whole. Free space on (or allow writing to) {folder.parent}, then go on with the same "
            f"command and {RESUME}, or without that if there is no checkpoint yet."
        ) from failure


def is_write_error(error: Exception) -> bool:
    """Whether an error is a full or read-only disk; safetensors and torch.save have their own types and words."""
    if isinstance(error, OSError | SafetensorError):
        return True
    words = ("inline_container", "PytorchStreamWriter", "iostream error", "Parent directory", "cannot be opened")
    return type(error) is RuntimeError and any(word in str(error) for word in words)


__all__ = [
    "RESUME",
    "RunningLoss",
    "check_checkpoint",
    "check_writable",
    "checkpoint_steps",
    "find_best",
    "find_checkpoint",
    "finish_checkpoint",
    "refuse_broken_weights",
    "remove_unfinished",
    "replacing",
    "rotate_checkpoints",
    "together",
    "unfinished",
]
