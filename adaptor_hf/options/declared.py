"""Options of a class as a dataclass: the keyword arguments of its `__init__`, with the help of its docstring."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from ..configuration_adaptor import AdaptorConfig

_PLAIN = (bool, int, float, str, type(None))
_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*) \((?P<type>.+?)\):\s*(?P<help>.*)", re.DOTALL)
_SECTION = re.compile(r"^(?P<indent> *)(?:Args|Arguments|Parameters):\n(?P<body>(?:(?P=indent) +\S.*\n|\s*\n)*)", re.M)


@dataclass
class Declared:
    """
    Values of the options of a class; a dataclass that `declared_options` has made inherits from it.

    Attributes:
        made (`type`): The class.
        of_config (`frozenset[str]`): Names of the options that are fields of `AdaptorConfig`; all others are keyword
            arguments of the class.
    """

    made: ClassVar[type]
    of_config: ClassVar[frozenset[str]] = frozenset()

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the class."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in self.of_config}

    def config(self) -> dict[str, Any]:
        """Fields of `AdaptorConfig`."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name in self.of_config}


def declared_options(made: type, defaults: Mapping[str, Any] | None = None) -> type[Declared]:
    """
    The dataclass of a class's options, with `help` and `choices` in the metadata of its fields.

    Types and defaults are those of the signature of `__init__`: bool, int, float, str, lists of these, `None`, and
    `Literal`, whose values are the choices. One of another type that has a default is no option. After them come the
    fields of `made.config_fields`, with types and help of `AdaptorConfig`.

    Args:
        made (`type`): Such as a subclass of `Objective`.
        defaults (`Mapping`, *optional*): By name, what a default of `None` stands for here.

    Raises:
        ValueError: a required argument that cannot be said in an option, or a name that is taken.
    """
    described, more = docstring_arguments(made.__doc__), defaults or {}
    hints = _hints_of(made)
    found: list[tuple[str, Any, Any]] = []
    for name, parameter in inspect.signature(made).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = parameter.default
        required = default is parameter.empty
        hint = hints.get(name, str if required else type(default))
        kind, choices = _as_option(hint)
        if kind is None or parameter.kind is parameter.POSITIONAL_ONLY or (name not in hints and default is None):
            if required:
                raise ValueError(
                    f"{made.__name__}: the argument {name} of its __init__ has no default and cannot be an option. "
                    "Options are keyword arguments of type bool, int, float, str, a list of these, or Literal."
                )
            continue
        if name == "name" or name in made.config_fields:
            raise ValueError(
                f"{made.__name__}: the argument {name} of its __init__ is called as "
                f"{'what chooses the class' if name == 'name' else 'one of its config_fields'}. Rename it."
            )
        if default is None and more.get(name) is not None:
            default, kind = more[name], _without_none(kind)
        found.append((name, kind, _field(default, required, described.get(name, ""), choices)))
    found += _config_options(made)
    declared = make_dataclass(f"{made.__name__}Options", found, bases=(Declared,), kw_only=True)
    declared.made, declared.of_config = made, frozenset(made.config_fields)
    declared.__doc__ = made.__doc__
    return declared


def docstring_arguments(text: str | None) -> dict[str, str]:
    """
    Help of each argument in the `Args:` of a docstring, one line each.

    Args:
        text (`str`, *optional*): With entries such as "margin (`float`, defaults to 0.3): Least distance."
    """
    section = _SECTION.search(f"{inspect.cleandoc(text or '')}\n")
    if section is None:
        return {}
    entries: list[str] = []
    lines = [line for line in section["body"].splitlines() if line.strip()]
    first = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    for line in lines:
        if len(line) - len(line.lstrip()) > first and entries:
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line.strip())
    found = {}
    for entry in entries:
        if match := _ENTRY.fullmatch(entry):
            found |= dict.fromkeys(match["names"].split(", "), match["help"].replace("`", ""))
    return found


@functools.cache
def _of_config() -> tuple[dict[str, Any], dict[str, str]]:
    """Types and help of the fields of `AdaptorConfig`."""
    return {item.name: item.type for item in fields(AdaptorConfig)}, docstring_arguments(AdaptorConfig.__doc__)


def _config_options(made: type) -> list[tuple[str, Any, Any]]:
    hints, described = _of_config()
    found = []
    for name, default in made.config_fields.items():
        kind, choices = _as_option(hints[name]) if name in hints else (None, None)
        if kind is None:
            raise ValueError(f"{made.__name__}.config_fields: {name!r} is no field of AdaptorConfig that is an option.")
        found.append((name, kind, _field(default, False, described.get(name, ""), choices)))
    return found


def _field(default: Any, required: bool, text: str, choices: tuple | None) -> Any:
    metadata = {"help": text} | ({"choices": choices} if choices else {})
    if required:
        return field(metadata=metadata)
    if isinstance(default, list | tuple):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _hints_of(made: type) -> dict[str, Any]:
    try:
        return get_type_hints(made.__init__)
    except NameError as error:
        raise ValueError(
            f"{made.__name__}: the annotations of its __init__ name what is not there ({error}). Import it outside "
            "of TYPE_CHECKING."
        ) from error


def _as_option(hint: Any) -> tuple[Any, tuple | None]:
    """The type of an option and its choices; (None, None) for what an option cannot hold."""
    choices: list[Any] = []
    kinds: list[Any] = []
    for one in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if get_origin(one) is Literal:
            choices += get_args(one)
            kinds += [type(value) for value in get_args(one)]
        elif get_origin(one) in (list, tuple):
            (inner, *_) = [part for part in get_args(one) if part is not Ellipsis] or [None]
            if inner not in _PLAIN[:-1]:
                return None, None
            kinds.append(list[inner])
        elif one in (None, *_PLAIN):
            kinds.append(type(None) if one is None else one)
        else:
            return None, None
    if float in kinds:
        # An int is taken for one.
        kinds = [kind for kind in kinds if kind is not int]
    return functools.reduce(operator.or_, dict.fromkeys(kinds)), tuple(choices) or None


def _without_none(kind: Any) -> Any:
    return functools.reduce(operator.or_, [one for one in get_args(kind) if one is not type(None)])


__all__ = ["Declared", "declared_options", "docstring_arguments"]
