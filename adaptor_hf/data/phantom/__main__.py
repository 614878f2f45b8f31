"""Writes phantoms from the command line."""

import argparse
from pathlib import Path

from . import contact_sheet, generate_phantoms, write_phantoms


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.data.phantom", description=__doc__)
    parser.add_argument("--output_dir", required=True, type=Path, help="a folder that does not exist or is empty")
    parser.add_argument("--n", type=int, default=1000, help="number of images")
    parser.add_argument("--image_size", type=int, default=256, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=1, help="threads")
    parser.add_argument("--contact_sheet", type=Path, help="also save a picture of the first 16 here (.png)")
    args = parser.parse_args()
    same = {"image_size": args.image_size, "seed": args.seed}
    try:
        print(write_phantoms(args.output_dir, args.n, num_workers=args.num_workers, **same))
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    if args.contact_sheet:
        contact_sheet(generate_phantoms(min(args.n, 16), **same)).save(args.contact_sheet)


if __name__ == "__main__":
    main()
