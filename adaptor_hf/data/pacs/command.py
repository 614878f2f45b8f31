"""What the command `python -m adaptor_hf.data index_dicom` does with its options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...privacy.mode import PrivacyArguments, error_text, start_private_mode
from .index import index_dicom
from .outputs import PAIRS, format_index


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
            seed=args.split_seed,
            num_proc=args.num_proc,
            format=args.format,
            take_over=args.take_over,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 2
    print(format_index(index.report))
    print(f"Wrote {Path(args.to, f'{PAIRS}.{args.format}')}.")
    return 0


__all__ = ["run"]
