"""Scores, masks or boxes of images without labels, by a saved model, without training: `adaptor-predict`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..data.table_arguments import TABLE, TableArguments, TowerArguments
from ..options.arguments import OptionFormatter, add_options
from ..options.fields import own_options, path_values
from ..privacy.gate import guarded, knows
from ..privacy.mode import PRIVACY, PrivacyArguments, error_text, start_private_mode
from ..progress import no_bars_in_a_log
from .arguments import (
    ESSENTIAL,
    MACHINE,
    OUTPUT,
    PRIVACY_OPTIONS,
    TABLE_OPTIONS,
    ZERO_SHOT,
    PredictionArguments,
)

logger = logging.getLogger("adaptor_hf.prediction.__main__")

_SCORES = {
    "softmax": "probabilities that sum to 1",
    "sigmoid": "a probability of each class",
    "cosine": "cosines, no probabilities",
}
_GROUPS = (ESSENTIAL, OUTPUT, ZERO_SHOT, TABLE, MACHINE, PRIVACY)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adaptor-predict" if Path(sys.argv[0]).stem == "adaptor-predict" else "python -m adaptor_hf.prediction",
        usage="%(prog)s --model FOLDER --image_folder FOLDER --output_dir FOLDER ...", description=__doc__,
        formatter_class=OptionFormatter,
    )  # fmt: skip
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    for item in own_options(PredictionArguments):
        add_options(groups[item.metadata["group"]], PredictionArguments, (item.name,))
    add_options(groups[TABLE], TableArguments, TABLE_OPTIONS)
    add_options(groups[MACHINE], TowerArguments, ("towers_dir",))
    add_options(groups[PRIVACY], PrivacyArguments, PRIVACY_OPTIONS)
    return parser


def _of(kind: type, given: argparse.Namespace) -> Any:
    return kind(**{item.name: getattr(given, item.name) for item in fields(kind) if hasattr(given, item.name)})


def _run(given: argparse.Namespace) -> int:
    """Exit status 0, or 75 after a signal of a scheduler: the same command then goes on."""
    arguments, table, privacy = (_of(kind, given) for kind in (PredictionArguments, TableArguments, PrivacyArguments))
    towers = _of(TowerArguments, given)
    start_private_mode(privacy, path_values(arguments, table, privacy, towers))
    from .. import auto_classes  # noqa: F401  (the names of models and towers)
    from ..embeddings.ranks import Ranks
    from ..tower_bundles_adaptor import use_towers_dir
    from ..training.interruption import EXIT_REQUEUE, Interrupted, catch_signals, out_of_memory
    from .run import predict

    if towers.towers_dir:
        use_towers_dir(towers.towers_dir)
    try:
        with catch_signals():
            record = predict(arguments, table, privacy)
    except Interrupted:
        print("Stopped by a signal. The same command goes on: finished parts are kept.", file=sys.stderr)
        return EXIT_REQUEUE
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            "The memory is not enough: pass a smaller --batch_size (default: 64 on a GPU, 4 on the CPU), or --dtype "
            "bfloat16. The same command then goes on, but for another --dtype."
        ) from error
    ranks = Ranks()
    status = _say(record, Path(arguments.output_dir)) if ranks.is_main else 0
    ranks.close()
    return status


def _say(record: dict[str, Any], output_dir: Path) -> int:
    images = record["images"]
    if record["computed"] == 0:
        print("All of it was predicted before; nothing is computed.")
    if images["faults"]:
        logger.warning(
            "%d of %d images are not predicted, listed in %s: %s.",
            images["all"] - images["predicted"], images["all"], output_dir / "faults.csv", images["faults"],
        )  # fmt: skip
    if not images["predicted"]:
        print("error: none of the images can be read.", file=sys.stderr)
        return 1
    scores = f" ({_SCORES[record['scores']]})" if record["scores"] else ""
    more = f", {output_dir / 'masks'}" if record["kind"] == "segmentation" else ""
    if (output_dir / "boxes.json").is_file():
        more += f", {output_dir / 'boxes.json'} ({record['boxes']} boxes)"
    print(f"{images['predicted']} images, {record['kind']}{scores}: {output_dir / 'predictions.csv'}{more}")
    print(
        "Next: measure this model on labelled images of the same place before anyone relies on its scores: "
        "train_downstream.py --task ... --table LABELLED.csv (docs/predict.md)."
    )
    return 0


@guarded(knows("ids and names of files, as keyed hashes, places and columns; it needs a key file"))
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger().setLevel(logging.ERROR)
    no_bars_in_a_log()
    try:
        return _run(given)
    except (ValueError, OSError, TypeError, ImportError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
