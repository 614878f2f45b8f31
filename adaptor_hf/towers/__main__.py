"""python -m adaptor_hf.towers list | bundle NAMES --to DIR | convert FILE --format F --to DIR | verify [NAMES]"""

import argparse
import logging
from pathlib import Path

from ..moved import warn_of
from ..privacy.gate import guarded, harmless, knows
from ..privacy.mode import error_text
from ..random_specs_adaptor import PREFIX
from .convert import FORMATS, convert_tower
from .listing import format_towers, list_towers
from .presets import KINDS, TOWER_PRESETS


@guarded({
    "list": harmless("what is packaged"),
    "bundle": knows("places"),
    "convert": knows("places; weights hold no rows of a table"),
    "verify": knows("places"),
})  # fmt: skip
def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 if all is well, 1 if a tower failed verification."""
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.towers", description="Presets of frozen towers.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="print the presets")
    listing.add_argument("--kind", choices=KINDS)
    listing.add_argument(
        "--commercial", action="store_true", help="only those whose recorded terms allow commercial use"
    )
    bundle = commands.add_parser("bundle", help="download towers into a folder for machines without network")
    bundle.add_argument("names", nargs="+", help="presets, OWNER/NAME[@REVISION], timm:NAME, xrv:NAME, folders")
    bundle.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of the bundle")
    convert = commands.add_parser("convert", help="make a tower folder from other people's weights")
    convert.add_argument("file", type=Path, help="a .ckpt, .pt, .pth, .bin or .safetensors file")
    convert.add_argument("--format", required=True, choices=sorted(FORMATS))
    convert.add_argument("--to", type=Path, required=True, metavar="DIR", help="new folder of the tower")
    convert.add_argument("--kind", default=KINDS[0], choices=KINDS)
    convert.add_argument("--side", choices=KINDS, help=argparse.SUPPRESS)
    convert.add_argument("--tokenizer", help="of a text tower: folder or Hub id")
    convert.add_argument("--num_attention_heads", type=int, help="where the widths do not tell")
    convert.add_argument("--quick_gelu", action="store_true", help="open_clip: trained with QuickGELU")
    convert.add_argument("--license", help="of the weights, as their publisher states it")
    convert.add_argument("--pretraining_data", nargs="+", help="what the weights were trained on")
    verify = commands.add_parser("verify", help="load real weights (needs network or a filled cache) and store digests")
    verify.add_argument("names", nargs="*", help="presets; all by default")
    verify.add_argument("--output", type=Path, default=Path("towers_verified.json"), help="JSON file of the digests")
    options = parser.parse_args(arguments)
    if options.command == "list":
        print(format_towers(list_towers(options.kind, True if options.commercial else None)))
        return 0
    if options.command == "convert":
        if options.side:
            warn_of("--side", "--kind")
            options.kind = options.side
        settings = {name: value for name, value in vars(options).items() if name not in ("command", "to", "side")}
        try:
            found = convert_tower(folder=options.to, **settings)
        except (OSError, ValueError) as error:
            raise SystemExit(f"error: {error_text(error)}") from error
        print(f"Wrote {options.to}: {found['architecture']} from {found['prefix'] or 'the whole file'}.")
        for what, keys in (("Heads left out", found["heads"]), ("Outside of the encoder", found["outside"])):
            print(f"{what}: {len(keys)} tensors" + (f": {', '.join(keys)}" if keys else ""))
        return 0
    if options.command == "bundle":
        from .bundle import bundle_towers

        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("adaptor_hf").setLevel(logging.INFO)
        try:
            bundle_towers(options.names, options.to)
        except (OSError, ValueError) as error:
            raise SystemExit(f"error: {error_text(error)}") from error
        print(f"On the other machine: --towers_dir {options.to.name} (or ADAPTOR_TOWERS_DIR).")
        return 0
    unknown = sorted(set(options.names) - set(TOWER_PRESETS))
    if unknown:
        parser.error(f"unknown presets {unknown}; known are {', '.join(TOWER_PRESETS)}")
    from .verify import verify_towers

    drawn = [name for name, facts in TOWER_PRESETS.items() if facts["name_or_path"].startswith(PREFIX)]
    if asked := sorted(set(options.names) & set(drawn)):
        parser.error(f"{', '.join(asked)}: there are no weights to verify, they are drawn where a tower is loaded")
    names = options.names or [name for name in TOWER_PRESETS if name not in drawn]
    return 0 if verify_towers(names, options.output) else 1


if __name__ == "__main__":
    raise SystemExit(main())
