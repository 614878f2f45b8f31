"""Options of a command as the scripts declare them, and how `--help` shows options; without transformers."""

from __future__ import annotations

import argparse
import copy
import shutil
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from .fields import PATH, own_metadata


def add_options(
    parser: Any,
    declared: type,
    names: Sequence[str],
    *,
    defaults: Mapping[str, Any] | None = None,
    spellings: Mapping[str, str] | None = None,
) -> None:
    """
    Options of a command that a script has too, as the script declares them: name, help, type, choices and default.

    What is on or off is a flag: the next word may be an argument of the command. A list may be given in parts.

    Args:
        parser (`ArgumentParser`): Of the command, or a group of its options. `OptionFormatter` fits its help.
        declared (`type`): A dataclass whose fields are made by `option`.
        names (`Sequence[str]`): Of its fields, in the order of `--help`.
        defaults (`Mapping[str, Any]`, *optional*): By name, those that are others in this command.
        spellings (`Mapping[str, str]`, *optional*): By name, how this command also spells the option.

    Raises:
        KeyError: the dataclass has no such field, or a default or spelling is of none of them.
    """
    known, hints = {item.name: item for item in fields(declared)}, get_type_hints(declared)
    more = {name: {"aliases": [spelling]} for name, spelling in (spellings or {}).items()}
    if unknown := (more.keys() | (defaults or {}).keys()) - set(names):
        raise KeyError(f"Not among the options: {', '.join(sorted(unknown))}.")
    for name in names:
        item = copy.copy(known[name])
        item.type = hints[name]
        if item.type in (bool, bool | None):
            parser.add_argument(
                *dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")),
                action="store_true",
                help=item.metadata["help"],
            )
            continue
        if get_origin(item.type) is list:
            more.setdefault(name, {})["action"] = "extend"
        action = add_field(parser, item, **more.get(name, {}))
        action.default = (defaults or {}).get(name, action.default)


def add_field(parser: Any, field: Field, **more: Any) -> argparse.Action:
    """
    The option that transformers' `HfArgumentParser` makes of a field that `option` declared, without importing it.

    Args:
        parser (`ArgumentParser`): Or a group of its options.
        field (`Field`): Its type resolved: text, a number, a list of these, or one of them or None.
        more: Passed to argparse.
    """
    known, own = {**field.metadata, **more}, own_metadata(field)
    known = {name: value for name, value in known.items() if name not in own}
    spellings = dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}"))
    kind = field.type
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is list:
        known["nargs"], (kind,) = "+", get_args(kind)
    if field.default_factory is not MISSING:
        known["default"] = field.default_factory()
    elif field.default is not MISSING:
        known["default"] = field.default
    else:
        known["required"] = True
    action = parser.add_argument(*spellings, *known.pop("aliases", ()), type=kind, **known)
    name_value(action, own["privacy"])
    return action


def name_value(action: argparse.Action, privacy: str | None, bools: Any = None) -> None:
    """
    What `--help` calls an option's value, where neither a metavar nor choices say it.

    Args:
        action (`argparse.Action`): The option.
        privacy (`str`, *optional*): What it can hold, one of `PRIVACY`.
        bools (`Callable`, *optional*): The type of options that take true or false.
    """
    if action.metavar is None and action.choices is None:
        if privacy == PATH or action.dest.endswith("_dir"):
            action.metavar = "FOLDER" if action.dest.endswith("_dir") else "PATH"
        else:
            known = {int: "N", float: "X", bools: "True|False"}
            action.metavar = known.get(action.type, "TEXT" if privacy else "VALUE")


class OptionFormatter(argparse.HelpFormatter):
    """One spelling of each option, and defaults that say something."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=min(shutil.get_terminal_size().columns, 120))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return str(action.metavar or action.dest)
        named = [name for name in action.option_strings if "-" not in name[2:]]
        if action.nargs == 0 or (action.nargs == "?" and action.const is True):
            return ", ".join(named)
        value = (
            "{" + ",".join(map(str, action.choices)) + "}"
            if _few(action.choices)
            else action.metavar or ("NAME" if action.choices else action.dest.upper())
        )
        return f"{', '.join(named)} {value}" + (" ..." if action.nargs in ("+", "*") else "")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.choices and not _few(action.choices):
            text += f" One of: {', '.join(map(str, action.choices))}."
        default = getattr(action, "left", None)
        default = action.default if default is None else default
        if default is None or default is False or default == [] or default == argparse.SUPPRESS:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        # argparse expands what follows a percent sign.
        return text if "default" in text.lower() else f"{text} (default: {shown.replace('%', '%%')})"


def _few(choices: Any) -> bool:
    return bool(choices) and len(",".join(map(str, choices))) < 32


__all__ = ["OptionFormatter", "add_field", "add_options", "name_value"]
