"""Writes phantoms from the command line."""

import argparse
from pathlib import Path

from adaptor_hf.privacy.gate import guarded, knows
from adaptor_hf.privacy.mode import error_text

from . import LANGUAGES, LAYOUTS, contact_sheet, generate_phantoms, write_layout, write_phantoms


@guarded(knows("places; phantoms are nobody's images"))
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.phantom", description=__doc__)
    parser.add_argument("output_dir", type=Path, help="a folder that does not exist or is empty")
    parser.add_argument("--n", type=int, default=1000, help="number of images")
    parser.add_argument("--image_size", type=int, default=256, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=1, help="threads")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help="the tree of a public data set instead of a table")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of the reports")
    parser.add_argument("--contact_sheet", type=Path, help="also save a picture of the first 16 here (.png)")
    args = parser.parse_args(arguments)
    same = {"image_size": args.image_size, "seed": args.seed, "language": args.language}
    try:
        if args.layout:
            print(write_layout(args.output_dir, args.n, args.layout, num_workers=args.num_workers, **same))
        else:
            print(write_phantoms(args.output_dir, args.n, num_workers=args.num_workers, **same))
    except (ValueError, FileExistsError) as error:
        parser.error(error_text(error))
    if args.contact_sheet:
        contact_sheet(generate_phantoms(min(args.n, 16), **same)).save(args.contact_sheet)


if __name__ == "__main__":
    main()
