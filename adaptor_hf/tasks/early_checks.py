"""What is not where the options say, before any of it is read."""

from __future__ import annotations

from pathlib import Path

from ..data.catalog import dataset_names
from ..data.places import check_folder, check_table, check_table_options, close_by
from ..tower_bundles_adaptor import use_towers_dir
from ..towers.check import check_tower
from .arguments import DownstreamArguments, named_tower, pairs_of


def check_before_start(arguments: DownstreamArguments) -> None:
    """
    Fail now on what would fail after tables were read and embedded: tables, folders, checkpoints and towers that are
    not there.

    Raises:
        OSError, ValueError: naming the option, and what has a close name.
    """
    check_table_options(arguments, arguments.table, "table")
    if arguments.do_predict is not None:
        check_table("do_predict", arguments.do_predict)
    for name, place in pairs_of(arguments.external).items():
        (check_folder if name in dataset_names() else check_table)("external", place)
    for model in (arguments.model, *arguments.more_models):
        _check_model(model, f"There is no checkpoint {model}: it is")
    for key, place in pairs_of(arguments.control_model).items():
        _check_model(place, f"The control model {key} is to be in {place}, which is")
    if arguments.towers_dir:
        use_towers_dir(arguments.towers_dir)
    if arguments.supervised_control is not None:
        from .supervised import check_supervised

        check_tower("vision", check_supervised(arguments.supervised_control)["preset"])
    for kind in ("vision", "text"):
        if (tower := named_tower(arguments, kind)) is not None:
            check_tower(kind, tower)


def _check_model(model: str, otherwise: str) -> None:
    """Raise FileNotFoundError where this is neither a folder with a config nor may be a hub id, OWNER/NAME."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        # A folder of peft names its base model.
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise FileNotFoundError(f"The checkpoint {model} has no config.json: it is no finished model.")
    elif folder.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{otherwise} no folder and no hub id.{close_by(model)}")


__all__ = ["check_before_start"]
