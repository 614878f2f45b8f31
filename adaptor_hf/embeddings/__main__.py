"""`python -m adaptor_hf.embeddings build|info|verify|repair`; `accelerate launch -m adaptor_hf.embeddings build`."""

import argparse
import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from ..data.pair_arguments import DataArguments
from ..data.reading import Reading
from ..data.split_rule import SplitRule
from ..data.table_arguments import TowerArguments
from ..options.arguments import OptionFormatter, add_options
from ..privacy.gate import guarded, knows, refuses
from ..privacy.mode import error_text, speaks_privately
from ..progress import no_bars_in_a_log
from .files import NUMPY_DTYPES

_RULE = SplitRule()
# Columns are as the table gives them, and a split is made where it has none.
_DEFAULTS = {
    "image_column": None, "validation_fraction": _RULE.validation_fraction, "test_fraction": _RULE.test_fraction,
    "split_seed": _RULE.seed,
}  # fmt: skip
_TABLE_OPTIONS = (
    "image_column", "text_column", "patient_column", "study_column", "split_column", "id_column", "view_column",
    "image_root", "filter", "delimiter", "encoding", "missing_word", "ids", "image_mode", "voi_lut", "range_percentile",
    "validation_fraction", "test_fraction", "split_seed", "extraction_batch_size", "max_text_length",
    "image_store", "image_store_size", "check",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.embeddings", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build", help="embed a table of images and reports, or go on with a build", formatter_class=OptionFormatter,
        description="Leave out a tower to build the other one's modality alone.",
    )  # fmt: skip
    build.add_argument(
        "source", help="CSV, TSV, Excel, Parquet or JSON-lines file, image folder, saved data set or hub id"
    )
    build.add_argument("--cache_dir", required=True, help="folder of the cache")
    add_options(build, TowerArguments, ("vision_tower", "text_tower"))
    spellings = {"split_seed": "--seed", "extraction_batch_size": "--batch_size"}
    add_options(build, DataArguments, _TABLE_OPTIONS, defaults=_DEFAULTS, spellings=spellings)
    build.add_argument("--dtype", choices=NUMPY_DTYPES, default="float16")
    build.add_argument("--device", help="cpu, cuda, cuda:1; default: CUDA when there is one")
    build.add_argument("--num_workers", type=int, help="processes that decode images")
    build.add_argument("--max_fault_fraction", type=float, default=0.05, help="share of bad rows that is accepted")
    for name, text in (
        ("info", "what a cache holds"), ("verify", "compare all files with their digests"),
        ("repair", "give up damaged files, so that a build embeds their rows again"),
    ):  # fmt: skip
        command = commands.add_parser(name, help=text)
        command.add_argument("cache_dir")
    return parser


def _build(arguments: argparse.Namespace) -> None:
    from .. import auto_classes  # noqa: F401  (the names of towers)
    from ..data.splits import assign_splits
    from ..data.tables import load_pairs
    from ..towers.check import check_tower
    from .build import build_cache
    from .ranks import Ranks

    for kind, tower in (("vision", arguments.vision_tower), ("text", arguments.text_tower)):
        if tower is not None:
            check_tower(kind, tower)
    columns = {name: value for name, value in vars(arguments).items() if name.endswith("_column") and value}
    if arguments.text_tower is None:
        columns["text_column"] = None
    filters = arguments.filter or None
    # Texts alone: no image is looked at.
    mode = arguments.image_mode if arguments.vision_tower else "L"
    dataset = load_pairs(
        arguments.source, image_root=arguments.image_root, filters=filters, voi_lut=arguments.voi_lut,
        image_mode=mode, ids=arguments.ids, missing_words=arguments.missing_word, sep=arguments.delimiter,
        encoding=arguments.encoding, range_percentile=arguments.range_percentile or 0.0, **columns,
    )  # fmt: skip
    shares = {"validation_fraction": arguments.validation_fraction, "test_fraction": arguments.test_fraction}
    dataset = assign_splits(dataset, **shares, seed=arguments.split_seed, ids=arguments.ids)
    options = ("max_text_length", "dtype", "device", "num_workers", "max_fault_fraction", "image_store",
               "image_store_size")  # fmt: skip
    cache = build_cache(
        dataset,
        arguments.vision_tower,
        arguments.text_tower,
        arguments.cache_dir,
        batch_size=arguments.extraction_batch_size,
        check=arguments.check,
        **{name: getattr(arguments, name) for name in options},
    )
    ranks = Ranks()
    if ranks.is_main:
        _print_info(cache.path)
    ranks.close()


def _build_until_done(arguments: argparse.Namespace) -> int:
    """Exit status 0, or 75 after a signal of a scheduler; then the file `requeue` is in the folder of the cache."""
    from ..training.interruption import EXIT_REQUEUE, Interrupted, catch_signals
    from ..training.run_folder import requeue_file

    is_main = os.environ.get("RANK", "0") == "0"
    try:
        with catch_signals(), requeue_file(arguments.cache_dir) if is_main else nullcontext():
            _build(arguments)
    except Interrupted:
        print("Stopped by a signal. The same command goes on: finished parts are kept.", file=sys.stderr)
        return EXIT_REQUEUE
    return 0


def _print_info(path: Path) -> None:
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
        "vision_tower": (cache.vision_spec or {}).get("name_or_path"),
        "text_tower": (cache.text_spec or {}).get("name_or_path"),
        "image_mode": reading.mode,
        "voi_lut": reading.voi_lut,
        "range_percentile": reading.range_percentile,
        "megabytes": round(sum(cache.path.parent.joinpath(name).stat().st_size for name in cache.files()) / 1e6, 1),
    }
    if speaks_privately():
        # Without quotes, in which all would be hidden.
        print(*(f"{name}: {json.dumps(value).replace(chr(34), '')}" for name, value in info.items()), sep="\n")
    else:
        print(json.dumps(info, indent=1, ensure_ascii=False))


@guarded({
    "build": refuses("train_pretrain.py builds a private cache, and so does build_cache in Python (docs/privacy.md)."),
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

            for name, rows in repair_cache(arguments.cache_dir).items():
                print(f"{name}: {rows} rows are given up; the same build embeds them again")
        else:
            from .verify import verify_cache

            for name, rows in verify_cache(arguments.cache_dir).items():
                print(f"{name}: {rows} rows, whole")
    except (ValueError, OSError, TypeError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
