"""`python -m adaptor_hf.embeddings build|info|verify`; `accelerate launch -m adaptor_hf.embeddings build ...`."""

import argparse
import json
import logging
import sys
from pathlib import Path

from ..data.reading import IMAGE_MODES, Reading
from ..data.splits import DEFAULT_SEED
from ..data.table_arguments import add_form_options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.embeddings", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="embed a table of images and reports, or go on with a build")
    build.add_argument(
        "source", help="CSV, TSV, Excel, Parquet or JSON-lines file, image folder, saved data set or hub id"
    )
    build.add_argument("--cache_dir", required=True, help="folder of the cache")
    build.add_argument("--vision_tower", help="name, hub id or folder; leave out to build texts alone")
    build.add_argument("--text_tower", help="name, hub id or folder; leave out to build images alone")
    build.add_argument(
        "--filter", action="extend", nargs="+", default=[], metavar="COLUMN=VALUE", help="keep these rows"
    )
    add_form_options(build)
    build.add_argument("--missing_word", nargs="+", default=[], help="more words for a missing value, such as unknown")
    for column in ("image", "text", "patient", "study", "split", "id", "view"):
        build.add_argument(f"--{column}_column", help=f"name of the {column} column")
    build.add_argument("--image_root", help="folder that image paths are relative to")
    build.add_argument("--ids", choices=("exact", "canonical"), help="ids in several spellings; default: stop")
    build.add_argument(
        "--image_mode", choices=IMAGE_MODES, default="auto", help="L: grey, RGB: colour, auto: looks at some files"
    )
    build.add_argument("--voi_lut", action="store_true", help="read DICOM files as displayed: with VOI LUT or window")
    build.add_argument("--validation_fraction", type=float, default=0.1, help="share of patients, without a split")
    build.add_argument("--test_fraction", type=float, default=0.1, help="share of patients, without a split")
    build.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of the split by patient")
    build.add_argument("--batch_size", type=int, help="rows in one forward pass")
    build.add_argument("--max_text_length", type=int, default=112, help="tokens a text is cut to")
    build.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    build.add_argument("--device", help="cpu, cuda, cuda:1; default: CUDA when there is one")
    build.add_argument("--num_workers", type=int, help="processes that decode images")
    build.add_argument("--max_fault_fraction", type=float, default=0.05, help="share of bad rows that is accepted")
    build.add_argument("--image_store", help="folder that keeps resized images for the next tower")
    build.add_argument("--image_store_size", type=int, default=256, help="shorter side of its images, in pixels")
    for name, text in (("info", "what a cache holds"), ("verify", "compute all checksums again")):
        command = commands.add_parser(name, help=text)
        command.add_argument("cache_dir")
    return parser


def _build(arguments: argparse.Namespace) -> None:
    from ..data.splits import assign_splits
    from ..data.tables import load_pairs
    from .build import build_cache
    from .ranks import Ranks

    columns = {name: value for name, value in vars(arguments).items() if name.endswith("_column") and value}
    if arguments.text_tower is None:
        columns["text_column"] = None
    filters = arguments.filter or None
    # Texts alone: no image is looked at.
    mode = arguments.image_mode if arguments.vision_tower else "L"
    dataset = load_pairs(
        arguments.source, image_root=arguments.image_root, filters=filters, voi_lut=arguments.voi_lut,
        image_mode=mode, ids=arguments.ids, missing_words=arguments.missing_word, sep=arguments.delimiter,
        encoding=arguments.encoding, **columns,
    )  # fmt: skip
    shares = {"validation_fraction": arguments.validation_fraction, "test_fraction": arguments.test_fraction}
    dataset = assign_splits(dataset, **shares, seed=arguments.seed, ids=arguments.ids)
    options = ("batch_size", "max_text_length", "dtype", "device", "num_workers", "max_fault_fraction")
    options += ("image_store", "image_store_size")
    cache = build_cache(
        dataset,
        arguments.vision_tower,
        arguments.text_tower,
        arguments.cache_dir,
        **{name: getattr(arguments, name) for name in options},
    )
    ranks = Ranks()
    if ranks.is_main:
        _print_info(cache.path)
    ranks.close()


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
        "megabytes": round(sum(cache.path.parent.joinpath(name).stat().st_size for name in cache.files()) / 1e6, 1),
    }
    print(json.dumps(info, indent=1, ensure_ascii=False))


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if arguments.command == "build":
            _build(arguments)
        elif arguments.command == "info":
            _print_info(Path(arguments.cache_dir))
        else:
            from .verify import verify_cache

            for name, rows in verify_cache(arguments.cache_dir).items():
                print(f"{name}: {rows} rows, whole")
    except (ValueError, OSError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
