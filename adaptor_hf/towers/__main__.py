"""python -m adaptor_hf.towers list | verify [names]"""

import argparse
from pathlib import Path

from .listing import format_towers, list_towers
from .presets import TOWER_PRESETS


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 if all is well, 1 if a tower failed verification."""
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.towers", description="Presets of frozen towers.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="print the presets")
    listing.add_argument("--kind", choices=["vision", "text"])
    verify = commands.add_parser("verify", help="load real weights (needs network or a filled cache) and store digests")
    verify.add_argument("names", nargs="*", help="presets; all by default")
    verify.add_argument("--output", type=Path, default=Path("towers_verified.json"), help="JSON file of the digests")
    options = parser.parse_args(arguments)
    if options.command == "list":
        print(format_towers(list_towers(options.kind)))
        return 0
    unknown = sorted(set(options.names) - set(TOWER_PRESETS))
    if unknown:
        parser.error(f"unknown presets {unknown}; known are {', '.join(TOWER_PRESETS)}")
    from .verify import verify_towers

    return 0 if verify_towers(options.names or list(TOWER_PRESETS), options.output) else 1


if __name__ == "__main__":
    raise SystemExit(main())
