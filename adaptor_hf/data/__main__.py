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
from .pacs import command as pacs_command


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
    check.add_argument("--option", nargs="*", default=[], metavar="NAME=VALUE", help="the data set's own options")
    check.add_argument("--json", type=Path, help="also write the counts here")
    pacs_command.add_arguments(commands.add_parser("index_dicom", help="a PACS export and its reports as pairs"))
    args = parser.parse_args(arguments)
    if args.command == "index_dicom":
        return pacs_command.run(args)

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
