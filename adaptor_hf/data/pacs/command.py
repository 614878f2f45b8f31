"""The command `python -m adaptor_hf.data index_dicom`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...private_mode import PrivacyArguments, start_private_mode
from .index import FORMATS, index_dicom
from .outputs import PAIRS, format_index
from .reports_table import REPEATED
from .rules import KEEPABLE, MODALITIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
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
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--num_proc", type=int, help="processes that read headers")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="of the table")
    parser.add_argument("--private", action="store_true", help="keyed hashes instead of ids (docs/privacy.md)")
    parser.add_argument("--key_file", help="file with the key of --private; made, for its owner only, if missing")


def run(args: argparse.Namespace) -> int:
    """Index, print the counts; the exit status is 0, or 2 where nothing could be indexed."""
    try:
        privacy = PrivacyArguments(private=args.private, key_file=args.key_file)
        start_private_mode(privacy, [args.root, args.reports, args.to])
        index = index_dicom(
            args.root,
            args.reports,
            args.on,
            to=args.to,
            reports_on=args.reports_on,
            text_column=args.text_column,
            repeated=args.repeated,
            encoding=args.encoding,
            delimiter=args.delimiter,
            modalities=args.modality,
            keep=args.keep,
            validation_fraction=args.validation_fraction,
            test_fraction=args.test_fraction,
            seed=args.seed,
            num_proc=args.num_proc,
            format=args.format,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_index(index.report))
    print(f"Wrote {Path(args.to, f'{PAIRS}.{args.format}')}.")
    return 0


__all__ = ["add_arguments", "run"]
