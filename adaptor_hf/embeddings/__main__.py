"""`python -m adaptor_hf.embeddings build|info|verify|repair`; `accelerate launch -m adaptor_hf.embeddings build`."""

import argparse
import json
import logging
import os
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..data.pair_arguments import DEFAULTS, DataArguments
from ..data.reading import Reading
from ..data.stored_arguments import STORED, refuse_without_tower
from ..data.table_arguments import EMBEDDINGS, PUBLIC, SPLIT, TABLE, TowerArguments
from ..options.arguments import OptionFormatter, add_options
from ..options.fields import own_options, path_values
from ..privacy.gate import guarded, knows
from ..privacy.mode import PRIVACY, PrivacyArguments, error_text, hide_place, speaks_privately, start_private_mode
from ..progress import no_bars_in_a_log
from .place import place_of_cache

# Started with -m it is `__main__`, of which private mode lets nothing out.
logger = logging.getLogger("adaptor_hf.embeddings.__main__")

ESSENTIAL, MACHINE = "essential", "this machine"
_GROUPS = (ESSENTIAL, TABLE, SPLIT, PUBLIC, EMBEDDINGS, STORED, MACHINE, PRIVACY)
_ESSENTIAL = ("train_file", "dataset", "data_root", "vision_tower", "text_tower", "cache_dir")
# A ready cache is not built, and nothing is pushed.
_NOT_HERE = ("cache", "allow_push")
_SPELLINGS = {"split_seed": "--seed", "extraction_batch_size": "--batch_size", "embedding_dtype": "--dtype"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.embeddings", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build", help="embed a table of images and reports, or go on with a build", formatter_class=OptionFormatter,
        usage="%(prog)s SOURCE --OPTION VALUE ...",
        description="Options of table, split and towers are those of train_pretrain.py: with the same ones it takes "
        "what is built here. Leave out a tower to build the other one's modality alone.",
    )  # fmt: skip
    _add_build_options(build)
    for name, text in (
        ("info", "what a cache holds"), ("verify", "compare all files with their digests"),
        ("repair", "give up damaged files, so that a build embeds their rows again"),
    ):  # fmt: skip
        command = commands.add_parser(name, help=text)
        command.add_argument("cache_dir")
    return parser


def _add_build_options(build: argparse.ArgumentParser) -> None:
    groups = {title: build.add_argument_group(title) for title in _GROUPS}
    groups[ESSENTIAL].add_argument(
        "source", nargs="?", metavar="SOURCE", help="As --train_file, which may be left out then."
    )
    declared = {item.name: kind for kind in (DataArguments, TowerArguments, PrivacyArguments)
                for item in own_options(kind) if item.name not in _NOT_HERE}  # fmt: skip
    titles = {item.name: item.metadata["group"] for kind in set(declared.values()) for item in own_options(kind)}
    for name in sorted(declared, key=lambda name: _ESSENTIAL.index(name) if name in _ESSENTIAL else len(_ESSENTIAL)):
        more = {key: {name: given[name]} for key, given in (("defaults", DEFAULTS), ("spellings", _SPELLINGS))
                if name in given}  # fmt: skip
        add_options(groups[ESSENTIAL if name in _ESSENTIAL else titles[name]], declared[name], (name,), **more)
    (place,) = (action for action in build._actions if action.dest == "cache_dir")
    place.help = "Where embeddings are kept. Default: ADAPTOR_CACHE_DIR of the environment, else outputs/embeddings."
    machine = groups[MACHINE]
    machine.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="Measure 32 rows here, say bytes and hours, and stop."
    )
    machine.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; default: CUDA when there is one.")
    machine.add_argument("--num_workers", "--num-workers", type=int, metavar="N", help="Processes that decode images.")


def _build_arguments(arguments: argparse.Namespace) -> tuple[DataArguments, TowerArguments, PrivacyArguments]:
    """The scripts' dataclasses of what was given.

    Raises:
        ValueError: options that do not go together.
    """
    if arguments.source is not None and arguments.train_file is not None:
        raise ValueError("SOURCE and --train_file are two names of the table: give one.")
    arguments.train_file = arguments.train_file or arguments.source
    if arguments.train_file is None and arguments.dataset is None:
        raise ValueError("Give a table (SOURCE), or --dataset (a public data set) with --data_root.")
    if arguments.vision_tower is None and arguments.text_tower is None:
        raise ValueError("Give --vision_tower, --text_tower, or both: python -m adaptor_hf.towers lists them.")
    given: dict[type, Any] = {}
    for kind in (DataArguments, TowerArguments, PrivacyArguments):
        names = [item.name for item in fields(kind) if hasattr(arguments, item.name)]
        given[kind] = kind(**{name: getattr(arguments, name) for name in names})
    data, towers, privacy = given.values()
    refuse_without_tower(data, vision=towers.vision_tower is not None, text=towers.text_tower is not None)
    if towers.text_tower is None and data.dataset is None:
        data.text_column = None
    if towers.vision_tower is None:
        # Texts alone: no image is looked at.
        data.image_mode = "L"
    return data, towers, privacy


def _build(
    arguments: argparse.Namespace, data: DataArguments, towers: TowerArguments, privacy: PrivacyArguments
) -> None:
    from .. import auto_classes  # noqa: F401  (the names of towers)
    from ..training.pair_cache import check_sources, embed_pairs, next_run, options_beside_cache
    from ..training.pairs import load_training_pairs
    from ..training.recipe_choice import recipe_of_pairs
    from .ranks import Ranks

    check_sources(data, towers)
    pairs = load_training_pairs(data, privacy)
    if arguments.dry_run:
        _estimate(pairs.dataset, arguments, data, towers)
        return
    machine = {name: getattr(arguments, name) for name in ("device", "num_workers")}
    cache = embed_pairs(pairs, data, towers, arguments.cache_dir, rebuild=data.rebuild, **machine)
    ranks = Ranks()
    if ranks.is_main:
        _print_info(cache.path)
        _say_copies(cache, data)
        if cache.vision_spec and cache.text_spec:
            recipe = {"recipe": recipe_of_pairs(cache.paired().splits.get("train", 0))}
            logger.info(next_run(cache.path, "outputs/run", recipe | options_beside_cache(data)))
    ranks.close()


def _estimate(dataset: Any, arguments: argparse.Namespace, data: DataArguments, towers: TowerArguments) -> None:
    import torch

    from ..training.dry_run import estimate_storage
    from ..training.pair_cache import loaded_towers

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = estimate_storage(dataset, data, *loaded_towers(data, towers), arguments.cache_dir, device)
    counts = [f"{one.rows:,} {name}" for name, one in (("images", found.images), ("texts", found.texts)) if one]
    print(f"What could be kept of {' and '.join(counts)}, measured on {device} with up to 32 rows:\n{found.table()}")


def _say_copies(cache: Any, data: DataArguments) -> None:
    """Training would stop at copies, or drop them: said now, while nothing waits for it."""
    from ..data.duplicates import without_copies

    if cache.vision_spec is None:
        return
    try:
        without_copies(cache, data.duplicates)
    except ValueError as error:
        logger.warning("Training on this cache will stop: %s", error_text(error))


def _build_until_done(arguments: argparse.Namespace) -> int:
    """Exit status 0, or 75 after a signal of a scheduler; then the file `requeue` is in the folder of the cache."""
    data, towers, privacy = _build_arguments(arguments)
    start_private_mode(privacy, path_values(data, towers, privacy))
    arguments.cache_dir = place_of_cache(cache_dir=arguments.cache_dir)
    hide_place(arguments.cache_dir)
    from ..training.interruption import EXIT_REQUEUE, Interrupted, catch_signals
    from ..training.run_folder import requeue_file

    is_main = os.environ.get("RANK", "0") == "0"
    if arguments.dry_run and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--dry_run measures one process: start it with python, without accelerate launch.")
    try:
        with catch_signals(), requeue_file(arguments.cache_dir) if is_main and not arguments.dry_run else nullcontext():
            _build(arguments, data, towers, privacy)
    except Interrupted:
        print("Stopped by a signal. The same command goes on: finished parts are kept.", file=sys.stderr)
        return EXIT_REQUEUE
    return 0


def _pooled(manifests: dict[str, dict]) -> dict[str, dict]:
    """Of each modality the version of its format, its rows, of all data sets, and how its pooled vectors are kept."""
    return {
        manifest["content"]: {
            "version": manifest["version"],
            "rows": manifest["rows"],
            "width": manifest["width"],
            "dtype": manifest["dtype"],
            "megabytes": round(sum(one["bytes"] for one in manifest["shards"] if not one.get("lost")) / 1e6, 1),
        }
        for manifest in manifests.values()
    }


def _print_info(path: Path) -> None:
    from .contents import stored_fields
    from .reader import open_cache

    cache = open_cache(path)
    reading = Reading.of_spec(cache.vision_spec)
    folders = {name: cache.manifest.get(name) for name in ("images", "texts")}
    info = {
        "path": str(cache.path),
        "fingerprint": cache.fingerprint,
        "rows": len(cache),
        "splits": cache.splits,
        "distinct_texts": cache.num_texts,
        "rows_without_text": cache.num_image_only,
        "cut_texts": cache.manifest.get("truncated_texts"),
        "max_text_length": cache.manifest.get("max_text_length"),
        "excluded_rows": cache.manifest["excluded"],
        "folders": folders,
        "pooled": _pooled(cache.modality_manifests()),
        "vision_tower": (cache.vision_spec or {}).get("name_or_path"),
        "text_tower": (cache.text_spec or {}).get("name_or_path"),
        "image_mode": reading.mode,
        "voi_lut": reading.voi_lut,
        "range_percentile": reading.range_percentile,
        "columns": stored_fields(cache),
        "megabytes": round(sum(cache.path.parent.joinpath(name).stat().st_size for name in cache.files()) / 1e6, 1),
    }
    if speaks_privately():
        # Without quotes, in which all would be hidden.
        print(*(f"{name}: {json.dumps(value).replace(chr(34), '')}" for name, value in info.items()), sep="\n")
    else:
        print(json.dumps(info, indent=1, ensure_ascii=False))


@guarded({
    "build": knows("ids, as keyed hashes, reports, places and columns; it needs a key file"),
    "info": knows("places"),
    "repair": knows("places, and what other libraries say of damage"),
    "verify": knows("places, and what other libraries say of damage"),
})  # fmt: skip
def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    no_bars_in_a_log()
    try:
        if arguments.command != "build" and not Path(arguments.cache_dir).is_dir():
            raise FileNotFoundError(f"{arguments.cache_dir} is no folder of a cache.")
        if arguments.command == "build":
            return _build_until_done(arguments)
        if arguments.command == "info":
            _print_info(Path(arguments.cache_dir))
        elif arguments.command == "repair":
            from .repair import repair_cache

            lost = repair_cache(arguments.cache_dir)
            for name, rows in lost.items():
                print(f"{name}: {rows} rows are given up; the same build embeds them again")
            if not lost:
                print("There is nothing to give up: no file of finished embeddings is damaged.")
        else:
            from .verify import verify_cache

            for name, count in verify_cache(arguments.cache_dir).items():
                held = f"unfinished build: {count} pieces" if "/building-" in name else f"{count} rows"
                print(f"{name}: {held}, whole")
    except (ValueError, OSError, TypeError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
