"""
Lists the packaged recipes and accelerate configs, or prints the path of one.

accelerate launch --config_file "$(python -m adaptor_hf.configs two_t4)" -m train_pretrain --recipe small ...
"""

import argparse
from pathlib import Path

from ..privacy.gate import guarded, harmless
from . import KINDS, accelerate_config, find_recipe, list_accelerate_configs, list_recipes


def packaged() -> dict[str, dict[str, Path]]:
    """What is packaged: of each heading its names and files."""
    headings = {
        "pretrain": "Pre-training: adaptor-pretrain --recipe NAME",
        "downstream": "Evaluation: adaptor-downstream --recipe NAME",
        "sweep": "Sweeps of evaluations: python -m adaptor_hf.tasks sweep NAME",
    }
    found = {headings[kind]: {name: find_recipe(name, kind) for name in list_recipes(kind)} for kind in KINDS}
    launch = 'Processes: accelerate launch --config_file "$(python -m adaptor_hf.configs NAME)" ...'
    return found | {launch: {name: accelerate_config(name) for name in list_accelerate_configs()}}


def describe(path: Path) -> str:
    """The first comment line of a config."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


@guarded(harmless("what is packaged"))
def main(arguments: list[str] | None = None) -> None:
    summary, _, example = __doc__.strip().partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m adaptor_hf.configs",
        description=summary,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="print the path of this one; default: list all")
    name = parser.parse_args(arguments).name
    groups = packaged()
    files = {name: path for group in groups.values() for name, path in group.items()}
    if name is None:
        width = max(map(len, files))
        for heading, group in groups.items():
            print(heading, *(f"  {name:{width}}  {describe(path)}" for name, path in group.items()), sep="\n")
    elif name in files:
        print(files[name])
    else:
        parser.exit(1, f"error: nothing packaged is called {name!r}. There are: {', '.join(files)}.\n")


if __name__ == "__main__":
    main()
