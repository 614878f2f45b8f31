"""Lists the public data sets that can be loaded from disk, checks a folder that holds one, and writes their pages;
makes a table of pairs of a PACS export.

python -m adaptor_hf.data list
python -m adaptor_hf.data check NAME ROOT --json report.json
python -m adaptor_hf.data pages docs/datasets
python -m adaptor_hf.data index_dicom ROOT --reports ris.csv --on AccessionNumber --to pairs
"""

import argparse
import json
import sys
from pathlib import Path

from .catalog import list_datasets
from .pacs.command import run as run_index
from .pacs.index import FORMATS
from .pacs.reports_table import REPEATED
from .pacs.rules import KEEPABLE, MODALITIES
from .reading import IMAGE_MODES
from .splits import DEFAULT_SEED


def parse_options(words: list[str]) -> dict[str, object]:
    """
    Options of a data set from "name=value" words; true, false, numbers and null are read as such.

    Raises:
        ValueError: A word has no "=".
    """
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"An option is name=value, got {word!r}.")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _add_index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", help="folder of the export, or a DICOMDIR")
    parser.add_argument("--reports", help="table of reports with a header line")
    parser.add_argument("--on", default="AccessionNumber", help="DICOM keyword and column that name a report")
    parser.add_argument("--to", required=True, help="folder for the table, its counts and the state of the index")
    parser.add_argument("--reports_on", help="the column's name, where it is not that of --on")
    parser.add_argument("--text_column", nargs="+", default=["text"], help="column of the text; several are joined")
    parser.add_argument("--repeated", choices=REPEATED, default="join", help="several different texts of one key")
    parser.add_argument("--encoding", help="of the table of reports; default: UTF-8, else Windows-1252")
    parser.add_argument("--delimiter", help="default: comma, semicolon, tab or bar, whichever the header has")
    parser.add_argument("--modality", nargs="+", default=list(MODALITIES), help="wanted ones, such as CR DX MG")
    parser.add_argument("--keep", nargs="+", default=[], choices=KEEPABLE, help="rules that are switched off")
    parser.add_argument("--validation_fraction", type=float, default=0.1, help="share of patients")
    parser.add_argument("--test_fraction", type=float, default=0.1, help="share of patients")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of the split")
    parser.add_argument("--num_proc", type=int, help="processes that read headers")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="of the table")
    parser.add_argument("--private", action="store_true", help="keyed hashes instead of ids (docs/privacy.md)")
    parser.add_argument("--key_file", help="file with the key of --private; made, for its owner only, if missing")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where faults are too many, 2 where nothing could be loaded."""
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.data", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, tasks and licences")
    pages = commands.add_parser("pages", help="write the pages about the data sets")
    pages.add_argument("folder", type=Path)
    check = commands.add_parser("check", help="count what a folder holds")
    check.add_argument("name", help="data set, see list")
    check.add_argument("root", help="its folder")
    check.add_argument("--task", help="default: the data set's first")
    check.add_argument("--split_scheme", default="official")
    check.add_argument("--label_policy", default="raw")
    check.add_argument("--num_proc", type=int, help="processes that read reports")
    check.add_argument("--read", default="1000", help='rows whose image and mask is read, or "all"')
    check.add_argument("--image_mode", choices=IMAGE_MODES, default="auto", help="L, RGB; auto: as the set declares")
    check.add_argument("--option", nargs="*", default=[], metavar="NAME=VALUE", help="the data set's own options")
    check.add_argument("--json", type=Path, help="also write the counts here")
    _add_index_options(commands.add_parser("index_dicom", help="a PACS export and its reports as pairs"))
    args = parser.parse_args(arguments)
    if args.command == "index_dicom":
        return run_index(args)

    if args.command == "list":
        for dataset in list_datasets():
            print(f"{dataset.name}: {dataset.title}. {', '.join(dataset.tasks)}. {dataset.license}")
        return 0

    if args.command == "pages":
        from .dataset_pages import write_pages

        print(f"Wrote {len(write_pages(args.folder))} pages to {args.folder}.")
        return 0

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
            **parse_options(args.option),
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_check(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
