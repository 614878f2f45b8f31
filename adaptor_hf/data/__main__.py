"""Lists the public data sets that can be loaded from disk, checks a folder that holds one or a table of one's own, and
writes their pages; makes a table of pairs of a PACS export; draws augmented views of images.

python -m adaptor_hf.data list
python -m adaptor_hf.data check NAME ROOT --json report.json
python -m adaptor_hf.data check --table my.csv --patient_column subject_id
python -m adaptor_hf.data pages docs/datasets
python -m adaptor_hf.data index_dicom ROOT --reports ris.csv --on AccessionNumber --to pairs
python -m adaptor_hf.data views IMAGE IMAGE --view_recipe lovt --to views.png
"""

import argparse
import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from ..files import write_aside
from ..options.arguments import OptionFormatter, add_options
from ..privacy.gate import guarded, harmless, knows
from ..privacy.messages import hide
from ..privacy.mode import PrivacyArguments, error_text, speaks_privately
from ..progress import no_bars_in_a_log
from .catalog import list_datasets, parse_options
from .colour import choose_mode
from .labels import LABEL_POLICIES
from .pacs.command import run as run_index
from .pacs.index import FORMATS
from .pacs.reports_table import REPEATED
from .pacs.rules import KEEPABLE, MODALITIES
from .pair_arguments import DataArguments
from .reading import Reading
from .split_rule import SplitRule
from .stored_arguments import StoredArguments

_RULE = SplitRule()
_SPLIT_DEFAULTS = {
    "validation_fraction": _RULE.validation_fraction, "test_fraction": _RULE.test_fraction, "split_seed": _RULE.seed,
}  # fmt: skip
_TABLE_COLUMNS = (
    "image_column", "text_column", "patient_column", "study_column", "split_column", "id_column", "view_column",
)  # fmt: skip


def _add_index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", help="folder of the export, or a DICOMDIR")
    parser.add_argument("--reports", help="table of reports with a header line; not UTF-8, it is read as Windows-1252")
    parser.add_argument("--on", default="AccessionNumber", help="DICOM keyword and column that name a report")
    parser.add_argument("--to", required=True, help="folder for the table, its counts and the state of the index")
    parser.add_argument("--reports_on", help="the column's name, where it is not that of --on")
    parser.add_argument("--text_column", nargs="+", default=["text"], help="column of the text; several are joined")
    parser.add_argument("--repeated", choices=REPEATED, default="join", help="several different texts of one key")
    add_options(parser, DataArguments, ("delimiter", "encoding"))
    parser.add_argument("--modality", nargs="+", default=list(MODALITIES), help="wanted ones, such as CR DX MG")
    parser.add_argument("--keep", nargs="+", default=[], choices=KEEPABLE, help="rules that are switched off")
    _add_split_options(parser)
    parser.add_argument("--num_proc", type=int, help="processes that read headers")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="of the table")
    parser.add_argument(
        "--take_over", action="store_true", help="write to --to although another machine's mark is there"
    )
    add_options(parser, PrivacyArguments, ("private", "key_file"))


def _add_split_options(parser) -> None:
    add_options(
        parser, DataArguments, tuple(_SPLIT_DEFAULTS), defaults=_SPLIT_DEFAULTS, spellings={"split_seed": "--seed"}
    )


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    table = parser.add_argument_group(
        "a table of your own, read as the scripts read it", '--text_column "" is for a table without reports'
    )
    table.add_argument(
        "--table", help="instead of NAME and ROOT: a CSV, TSV, Excel, Parquet or JSON-lines file, or a folder"
    )
    names = (*_TABLE_COLUMNS, "image_root", "delimiter", "encoding", "filter", "missing_word", "ids", "split_alias")
    add_options(table, DataArguments, names, defaults={"image_column": None})
    _add_split_options(table)
    table.add_argument("--near_copies", action="store_true", help="also look for images that are nearly copies")
    table.add_argument("--private", action="store_true", help="no path, quoted value or column name in what is said")


def _check_own_table(args: argparse.Namespace) -> int:
    """Exit status 0, 1 where something would stop a script, 2 where the table cannot be read."""
    from .check_table import check_table, format_table_check

    columns = {name: getattr(args, name) for name in _TABLE_COLUMNS if getattr(args, name) is not None}
    if columns.get("text_column") == "":
        columns["text_column"] = None
    try:
        result = check_table(
            args.table,
            ids=args.ids,
            split_alias=args.split_alias,
            rule=_rule(args),
            near=args.near_copies,
            image_root=args.image_root,
            sep=args.delimiter,
            encoding=args.encoding,
            filters=args.filter or None,
            missing_words=tuple(args.missing_word),
            **columns,
        )
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 2
    if speaks_privately():
        result = _hidden(result)
    print(format_table_check(result))
    if args.json:
        write_aside(args.json, json.dumps(result, indent=1))
    return 0 if result["ok"] else 1


def _hidden(value: Any) -> Any:
    """A result without what private mode hides, at any depth."""
    if isinstance(value, dict):
        return {name: _hidden(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return hide(value) if isinstance(value, str) else value


def _rule(args: argparse.Namespace) -> SplitRule:
    shares = {"validation_fraction": args.validation_fraction, "test_fraction": args.test_fraction}
    return SplitRule(seed=args.split_seed, **shares)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.data", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, tasks and licences")
    pages = commands.add_parser("pages", help="write the pages about the data sets")
    pages.add_argument("folder", type=Path)
    check = commands.add_parser(
        "check", help="count what a folder holds, or what a table of your own does", formatter_class=OptionFormatter
    )
    check.add_argument("name", nargs="?", help="data set, see list")
    check.add_argument("root", nargs="?", help="its folder")
    _add_table_options(check)
    check.add_argument("--task", help="default: the data set's first")
    policies = ", ".join(LABEL_POLICIES)
    check.add_argument("--label_policy", default="raw", help=f"what blank and uncertain labels become: {policies}")
    check.add_argument("--num_proc", type=int, help="processes that read reports")
    check.add_argument("--read", default="1000", help='rows whose image and mask is read, or "all"')
    names = ("split_scheme", "image_mode", "dataset_option")
    spellings = {"dataset_option": "--option"}
    add_options(check, DataArguments, names, defaults={"split_scheme": "official"}, spellings=spellings)
    check.add_argument("--json", type=Path, help="also write the counts here")
    views = commands.add_parser(
        "views", help="draw augmented views of images, as a cache keeps them", formatter_class=OptionFormatter
    )
    views.add_argument("images", nargs="+", help="image files")
    views.add_argument("--to", type=Path, required=True, help="PNG file")
    views.add_argument("--views", type=int, default=4, metavar="K", help="of each image")
    add_options(views, StoredArguments, ("view_recipe", "view_seed"))
    add_options(views, DataArguments, ("image_mode", "voi_lut", "range_percentile"))
    views.add_argument("--private", action="store_true", help="no path in what is said")
    index = commands.add_parser(
        "index_dicom", help="a PACS export and its reports as pairs", formatter_class=OptionFormatter
    )
    _add_index_options(index)
    return parser


def _reading(args: argparse.Namespace) -> Reading:
    import datasets

    mode = args.image_mode
    if mode == "auto":
        mode = choose_mode(datasets.Dataset.from_dict({"image": args.images}), "--image_mode {}")
    return Reading(mode, bool(args.voi_lut), args.range_percentile or 0.0)


def _draw_views(args: argparse.Namespace) -> int:
    from .view_sheet import view_sheet

    encoded = BytesIO()
    try:
        sheet = view_sheet(args.images, args.view_recipe, args.views, args.view_seed, _reading(args))
        sheet.save(encoded, "PNG")
        write_aside(args.to, encoded.getvalue())
    except (OSError, ValueError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 2
    print(f"{args.views} views of {len(args.images)} images: patients' images, keep the file as private as they are.")
    return 0


@guarded({
    "list": harmless("what is packaged"),
    "pages": knows("the folder's name"),
    "check": knows("places and what is quoted; of a table no column name, id or value is said or written"),
    "views": knows("places; what it draws is the images"),
    "index_dicom": knows("ids, as keyed hashes, names of files and what headers say in free text; it needs a key file"),
})  # fmt: skip
def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where faults are too many, 2 where nothing could be loaded."""
    parser = _parser()
    args = parser.parse_args(arguments)
    no_bars_in_a_log()
    if args.command == "index_dicom":
        return run_index(args)

    if args.command == "list":
        for dataset in list_datasets():
            print(f"{dataset.name}: {dataset.title}. {', '.join(dataset.tasks)}. {dataset.license}")
        return 0

    if args.command == "views":
        return _draw_views(args)

    if args.command == "pages":
        from .dataset_pages import write_pages

        print(f"Wrote {len(write_pages(args.folder))} pages to {args.folder}.")
        return 0

    if args.table is not None:
        if args.name is not None:
            parser.error("check takes NAME and ROOT, or --table")
        return _check_own_table(args)
    if args.root is None:
        parser.error("check takes NAME and ROOT of a public data set, or --table with your own")
    from .check import check_dataset, format_check

    try:
        read = None if args.read == "all" else int(args.read)
        result = check_dataset(
            args.name,
            args.root,
            args.task,
            read=read,
            split_scheme=args.split_scheme,
            label_policy=args.label_policy,
            num_proc=args.num_proc,
            image_mode=args.image_mode,
            **parse_options(args.dataset_option),
        )
    except (OSError, ValueError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 2
    if speaks_privately():
        # They name files and rows.
        result = _hidden(result | {"fault_examples": [], "unreadable_examples": []})
    print(format_check(result))
    if args.json:
        write_aside(args.json, json.dumps(result, indent=1))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
