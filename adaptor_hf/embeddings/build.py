"""Builds a cache: each tower runs once over each distinct image and text, whatever happens to the process."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ..data.reading import Reading
from ..folder_lock import FolderLock
from ..privacy.mode import check_private_columns, check_private_mode
from .digests import FileChecks
from .faults import check_faults, fault_summary
from .files import NUMPY_DTYPES
from .image_store import ImageStore
from .manifest import read_manifest
from .memory import release_memory
from .modalities import Modality, Plan, Settings
from .pairs import write_pairs
from .pieces import PIECE_ROWS
from .ranks import Ranks
from .reader import EmbeddingCache, open_together
from .rebuilding import remove_superseded
from .shards import SHARD_ROWS
from .source import TowerSource
from .stored import StoredImages, StoredTexts
from .table import PairTable, merge_splits, read_table

logger = logging.getLogger(__name__)


def build_cache(
    dataset: Any,
    vision_tower: Any = None,
    text_tower: Any = None,
    cache_dir: str | os.PathLike = "embeddings",
    *,
    batch_size: int | None = None,
    max_text_length: int = 112,
    dtype: str = "float16",
    device: Any = None,
    num_workers: int | None = None,
    max_fault_fraction: float = 0.05,
    image_store: str | os.PathLike | None = None,
    image_store_size: int = 256,
    piece_rows: int = PIECE_ROWS,
    shard_rows: int = SHARD_ROWS,
    check: str = "touched",
    image_tokens: Literal["all"] | int | None = None,
    regions: tuple[int, int] | str | None = None,
    shallow: tuple[int, ...] = (),
    image_attention: bool = False,
    views: int = 0,
    view_recipe: str | None = None,
    view_seed: int = 0,
    text_tokens: bool = False,
    text_attention: bool = False,
    words: bool = False,
    sentences: bool = False,
    rebuild: bool = False,
    latest: bool = True,
) -> EmbeddingCache:
    """Embed every distinct image and text of a data set once, and open the result.

    What is there already is reused: the same call again reads no image and runs no tower; another tower, processor or
    pooling rebuilds its own modality only; new rows are added. A killed build goes on where it stopped. Under
    `accelerate launch` or `torchrun` all ranks share the work; every rank must make the same call. A second process
    that builds the same cache waits for the first one and uses its result.

    A row is excluded, and listed in `excluded.csv` with its source row, when its image is missing or cannot be
    decoded, its text is empty or NaN, its image_id was seen before, or its embedding is NaN, infinite or zero. A row
    whose text is None is no fault: it stays, without text. Other rows keep their numbers.

    Batches are planned before the work is divided, so the files do not depend on ranks, workers or restarts on one
    machine and thread count. Elsewhere, or after adding rows in several steps, expect cosines of 1 - 1e-6.

    Args:
        dataset: datasets.Dataset or DatasetDict with the columns `image` and/or `text`, and, where there are any,
            `image_id`, `patient_id`, `study_id`, `view`, `split`, `source_row`, `labels`. Where the feature of `image`
            states a reading (`RadiographImage`, as `load_pairs` makes it), images are read so, those of another reading
            into embeddings of their own; else up to 200 files are looked at, and are read in colour if they have it.
        vision_tower: name, spec or loaded tower; None leaves images out.
        text_tower: name, spec or loaded tower; None leaves texts out.
        cache_dir: folder of the cache; several caches may share it.
        batch_size: images or texts in one forward pass; None takes 64 on CUDA and 4 on the CPU, where larger ones are
            slower.
        max_text_length: tokens a text is cut to, at most what the tower takes. The share of cut texts is printed.
        dtype: "float16" (1 - cosine to float32 below 1e-6), "float32", or "int8" with a scale for each vector, which is
            read as float16.
        device: where to run; None takes CUDA when there is one, and leaves a loaded tower where it is.
        num_workers: processes that decode images; None takes all cores but one for CUDA, half of them for the CPU.
        max_fault_fraction: largest share of excluded rows that is accepted.
        image_store: folder that keeps resized images, so that another tower need not decode the files again. A tower
            whose processor resizes to another size or with another filter than bicubic gets slightly other numbers, so
            the key of the embeddings says that a store was used; see docs/cache.md.
        image_store_size: shorter side of the stored images in pixels, at least what the tower resizes to; smaller
            images are stored as they are.
        piece_rows: rows after which progress is safe from a kill; fewer with views, and where tokens are kept, which
            take 128 MB.
        shard_rows: rows of one Arrow file.
        check: which files are compared with their digests, as of `open_cache`.
        image_tokens, regions, shallow, image_attention, views, view_recipe, view_seed: what is kept of an image beside
            its pooled vector, as of `StoredImages`.
        text_tokens, text_attention, words, sentences: what is kept of a text, as of `StoredTexts`. All of it nearly is
            the text; in private mode see `check_private_columns`.
        rebuild: embed all rows of this data set anew. What is there stays for runs that read it, and is removed by the
            next build that embeds something in these folders.
        latest: whether `open_cache(cache_dir)` opens these pairs from now on; with False only where it opens none yet.

    Returns:
        EmbeddingCache of all splits.

    Raises:
        TypeError: dataset or towers are of the wrong kind.
        ValueError: no tower, a missing column, an unknown dtype or check, a damaged file (named), too many faulty rows
            (the message shows the first ones; finished work is kept), or private mode was asked for by the environment
            and is not on.
        OSError: a tower or the cache folder cannot be read or written.
    """
    check_private_mode()
    if vision_tower is None and text_tower is None:
        raise ValueError("give vision_tower, text_tower, or both")
    if dtype not in (*NUMPY_DTYPES, "int8"):
        raise ValueError(f"dtype must be one of {sorted([*NUMPY_DTYPES, 'int8'])}, got {dtype!r}")
    sizes = {"batch_size": batch_size, "max_text_length": max_text_length, "shard_rows": shard_rows}
    for name, value in (sizes | {"image_store_size": image_store_size}).items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    kept_images = StoredImages(image_tokens, regions, shallow, image_attention, views, view_recipe, view_seed)
    kept_texts = StoredTexts(text_tokens, text_attention, words, sentences)
    check_private_columns(asdict(kept_images), asdict(kept_texts))
    cache_dir = Path(cache_dir)
    ranks = Ranks()
    on_cuda = _runs_on_cuda(device, vision_tower if vision_tower is not None else text_tower)
    # On the CPU the activations of a larger batch leave the caches and the allocator's pools: 2.4 times the time for
    # EfficientNet-Lite0 at 64 images.
    batch_size = batch_size or (64 if on_cuda else 4)
    workers = num_workers if num_workers is not None else worker_count(on_cuda)
    reading = ranks.on_main(lambda: _reading_of(dataset)) if vision_tower is not None else Reading()
    store = ImageStore(image_store, image_store_size, reading) if image_store is not None else None
    checks = FileChecks(check)
    settings = Settings(
        batch_size, dtype, max_text_length, workers, piece_rows, shard_rows, store, reading, checks, kept_images,
        kept_texts, rebuild,
    )  # fmt: skip
    sources = {}
    if vision_tower is not None:
        sources["images"] = TowerSource("vision", vision_tower, device, cache_dir)
    if text_tower is not None:
        sources["texts"] = TowerSource("text", text_tower, device, cache_dir)

    pairs = _build(dataset, sources, cache_dir, settings, ranks, max_fault_fraction, latest)
    cache = open_together(Path(pairs), checks, ranks)
    release_memory()
    return cache


def _reading_of(dataset: Any) -> Reading:
    """What the image column states, else what its files show."""
    from ..data.colour import choose_mode
    from ..data.features import stated_reading

    stated = stated_reading(dataset)
    merged = merge_splits(dataset)[0] if stated is None else None
    if merged is None or "image" not in merged.column_names:
        return stated or Reading()
    return Reading(choose_mode(merged, 'A column of RadiographImage(mode="{}")'))


def _build(
    dataset: Any,
    sources: dict[str, TowerSource],
    cache_dir: Path,
    settings: Settings,
    ranks: Ranks,
    max_fault_fraction: float,
    latest: bool,
) -> str:
    """Compute what is missing and write the pairs; returns the pairs folder."""
    read: list[PairTable] = []
    ranks.on_main(lambda: read.append(read_table(dataset, images="images" in sources, texts="texts" in sources)))
    # Only rank 0 decides; the others need nothing but the rows of its plan.
    table = read[0] if read else PairTable(merge_splits(dataset)[0])
    release_memory()
    ranks.on_main(lambda: check_faults(table, cache_dir, max_fault_fraction))
    modalities = [
        Modality(name, source, *ranks.on_main(source.describe), cache_dir, settings) for name, source in sources.items()
    ]

    def begin() -> bool:
        counts = {modality.name: len(modality.missing(table)) for modality in modalities}
        missing = [modality for modality in modalities if counts[modality.name]]
        # A tower that cannot give what is asked for is refused before anything is computed or written.
        for modality in missing:
            modality.check_columns()
        cache_dir.mkdir(parents=True, exist_ok=True)
        for source in sources.values():
            source.remember()
        _say_what_is_missing(counts, len(table))
        left = any(modality.folder.has_leftovers() for modality in modalities)
        return bool(missing) or (left and _nobody_builds(cache_dir))

    if ranks.on_main(begin):
        _build_missing(modalities, table, cache_dir, ranks)

    def finish() -> str:
        for modality in modalities:
            modality.collect_faults(table)
        release_memory()
        check_faults(table, cache_dir, max_fault_fraction)
        pairs = write_pairs(cache_dir, table, modalities, latest=latest)
        _report(table, read_manifest(pairs, check=settings.checks.metadata), cache_dir)
        return str(pairs)

    return ranks.on_main(finish)


def _say_what_is_missing(counts: dict[str, int], rows: int) -> None:
    if not any(counts.values()):
        logger.info("Nothing to embed: all %s are there", " and ".join(counts))
        return
    said = " and ".join(f"{count:,} distinct {name}" for name, count in counts.items())
    logger.info("To embed: %s, for %s rows", said, f"{rows:,}")


def _report(table: PairTable, manifest: dict, cache_dir: Path) -> None:
    if manifest.get("truncated_texts"):
        cut, texts, tokens = (manifest[name] for name in ("truncated_texts", "distinct_texts", "max_text_length"))
        logger.warning("%d of %d distinct texts (%.1f %%) were cut to %d tokens", cut, texts, 100 * cut / texts, tokens)
    if table.has_text is not None and not table.has_text.all():
        without = sum(int(row) not in table.faults for row in (~table.has_text).nonzero()[0])
        logger.info("%d rows have no text: they are cached, and left out of contrastive training", without)
    if table.faults:
        logger.warning(fault_summary(table, cache_dir))


def _runs_on_cuda(device: Any, tower: Any) -> bool:
    import torch

    if device is None and isinstance(tower, torch.nn.Module):
        device = next(tower.parameters()).device
    return torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"


def worker_count(on_cuda: bool) -> int:
    """Processes that read files beside this one: all cores but one with CUDA, half of them without."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(0, min(16, cores - 1 if on_cuda else cores // 2))


@contextmanager
def _space_named(cache_dir: Path, modality: Modality, plan: Plan) -> Iterator[None]:
    """Say how much space is needed when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free, needed = shutil.disk_usage(cache_dir).free, modality.bytes_needed(plan)
        raise OSError(
            error.errno,
            f"the disk of {cache_dir} is full: {free / 1e6:.1f} MB are free, and this build of {modality.name} needs "
            f"about {needed / 1e6:.1f} MB from its start to its end. Finished pieces are kept: free space, and the "
            f"same call goes on from there ({error.strerror})",
        ) from error


def _nobody_builds(cache_dir: Path) -> bool:
    lock = _build_lock(cache_dir)
    try:
        lock.acquire()
    except BlockingIOError:
        return False
    lock.release()
    return True


def _build_lock(cache_dir: Path) -> FolderLock:
    return FolderLock(cache_dir, "build", what="build", option="cache_dir", strict=False)


def _build_missing(modalities: list[Modality], table: PairTable, cache_dir: Path, ranks: Ranks) -> None:
    lock = _build_lock(cache_dir)

    def acquire() -> bool:
        # In slices, so that ranks that wait for rank 0 do not run into the time limit of a collective call.
        try:
            lock.acquire(timeout=30)
        except BlockingIOError:
            return False
        return True

    while not ranks.on_main(acquire):
        pass
    try:
        ranks.on_main(lambda: remove_superseded(cache_dir, [modality.folder for modality in modalities]))
        for modality in modalities:
            plan = ranks.on_main(lambda modality=modality: modality.plan(table))
            with _space_named(cache_dir, modality, plan):
                release_memory()
                if plan.pieces:
                    ranks.together(
                        lambda modality=modality, plan=plan: modality.compute(table, plan, ranks.index, ranks.world)
                    )
                ranks.on_main(lambda modality=modality, plan=plan: modality.finish(plan))
    except KeyboardInterrupt:
        logger.warning("interrupted: finished pieces are kept in %s, the same call goes on from there", cache_dir)
        raise
    finally:
        if ranks.is_main:
            lock.release()
