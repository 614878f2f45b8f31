"""Options that name a thing with fields of its own, such as `--objective adaptor`: a name or a mapping."""

from __future__ import annotations

import difflib
import json
import types
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..configs.written import Written, meant, without_repeated_keys
from ..moved import warn_of
from .declared import Declared
from .fields import default_of


@dataclass(frozen=True)
class Choice:
    """
    An option that is a name, or a mapping of `name` and fields.

    Args:
        option (`str`): Its name, such as `"objective"`.
        known (`Mapping[str, type]`): Each name that can be chosen and the dataclass that declares its fields: types,
            defaults, and in the metadata `help`, where values are few `choices`, and `flag=False` where the field has
            never been an option of its own. The first one is the default.
        find (`Callable`, *optional*): Gives the dataclass of a name that is not known but has the form of `also`, and
            None for one that has not. It runs code of the user's.
        also (`str`): That form, such as `"file.py:Class"`.
    """

    option: str
    known: Mapping[str, type]
    find: Callable[[str], type | None] | None = None
    also: str = ""

    @property
    def default(self) -> str:
        return next(iter(self.known))

    @property
    def old_flags(self) -> dict[str, Any]:
        """What were options of their own before there were choices: fields of the default one, with its defaults."""
        declared = fields(self.known[self.default])
        return {item.name: item.default for item in declared if item.metadata.get("flag", True)}

    def name_of(self, chosen: Any) -> str:
        """The name whose dataclass this is an instance of."""
        return next(name for name, declared in self.known.items() if type(chosen) is declared)

    def add_old_flag(self, parser: ArgumentParser, name: str) -> None:
        """Let a parser understand an old flag, which `--help` does not show."""
        declared = self.known[self.default]
        item = next(item for item in fields(declared) if item.name == name)
        (kind,) = [kind for kind in _kinds(get_type_hints(declared)[name]) if kind is not type(None)]
        more = {key: value for key, value in item.metadata.items() if key == "choices"}
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, dest=name, type=kind, default=SUPPRESS, help=SUPPRESS, **more)

    def read(self, value: Any) -> dict[str, Any]:
        """
        What was given as a mapping: a name, JSON text, or a mapping already.

        Raises:
            ValueError: something else, or text that starts as JSON does and is none.
        """
        form = f'a name ({self._names()}) or a mapping such as {{"name": "{self.default}", ...}}'
        if isinstance(value, str):
            if not value.lstrip().startswith("{"):
                return {"name": value}
            try:
                value = json.loads(value, object_pairs_hook=without_repeated_keys)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"--{self.option} is {form}; as JSON it cannot be read: {error}.") from error
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.option} is {form}, got {type(meant(value)).__name__}.")
        return dict(value)

    def with_old_flags(self, given: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
        """
        A mapping with the values of old flags, which are warned of.

        Raises:
            ValueError: the mapping has another value for one of them, or chooses a name that did not exist then.
        """
        for name, value in old.items():
            example = json.dumps({name: value})
            new = f"a field of --{self.option}: --{self.option} '{example}', in a recipe {self.option}: {example}"
            warn_of(f"--{name}", new, stacklevel=4)
            if name in given and meant(given[name]) != value:
                raise ValueError(
                    f"{name} is given twice: {value!r} by --{name}, {meant(given[name])!r} in {self.option}. "
                    "Keep the latter."
                )
        if old and given.get("name", self.default) != self.default:
            raise ValueError(
                f"--{next(iter(old))} is a field of {self.option} {self.default}, and {given['name']!r} is chosen."
            )
        return given | dict(old)

    def merge(self, lower: dict[str, Any], higher: dict[str, Any]) -> dict[str, Any]:
        """Fields of `higher` over those of `lower`; where it chooses another name, those do not apply."""
        if "name" in higher and higher["name"] != lower.get("name", self.default):
            return higher
        return lower | higher

    def build(self, given: Any) -> Any:
        """
        The dataclass of the chosen name with the fields that were given.

        Args:
            given: A name, a mapping, or an instance, which is returned.

        Raises:
            ValueError: an unknown name or field, naming the known ones, or a value of the wrong type.
        """
        if type(given) in self.known.values() or isinstance(given, Declared):
            return given
        given = self.read(given)
        name = given.pop("name", self.default)
        declared = self.known.get(name) if isinstance(name, str) else None
        if declared is None and isinstance(name, str) and self.find is not None:
            declared = self.find(str(name))
        if declared is None:
            close = difflib.get_close_matches(str(name), self.known, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"Unknown {self.option} {name!r}.{meant} Known: {self._names()}.")
        title = name if name in self.known else declared.made.__name__
        return build_fields(declared, given, f"The {self.option} {title}", self.option)

    def names_code(self, given: Mapping[str, Any]) -> bool:
        """Whether what was given names none of the known, but code of a file."""
        name = given.get("name", self.default)
        return self.find is not None and isinstance(name, str) and name not in self.known

    def _names(self) -> str:
        return ", ".join([*self.known, *([self.also] if self.also else [])])

    def describe(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Of each name, its fields with default and help, for `--help_all`."""
        return [
            (
                name,
                [
                    # argparse expands what follows a percent sign.
                    (f"{item.name} ({_default_text(item)})", item.metadata.get("help", "").replace("%", "%%"))
                    for item in fields(declared)
                ],
            )
            for name, declared in self.known.items()
        ]


def build_fields(declared: type, given: Mapping[str, Any], who: str, where: str) -> Any:
    """
    An instance of a dataclass of options.

    Args:
        declared (`type`): The dataclass; of its fields the metadata may have `choices`.
        given (`Mapping`): Values by name, of a recipe as they were written.
        who (`str`): Of whom these are the options, for messages, such as "The objective siglip".
        where (`str`): Before the name of a field in messages, such as "objective".

    Raises:
        ValueError: a field that there is not, one that is missing, or a value of the wrong type.
    """
    known = {item.name: item for item in fields(declared)}
    listed = f"Its fields: {', '.join(known) or 'none'}."
    for wrong in given.keys() - known.keys():
        close = difflib.get_close_matches(str(wrong), known, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"{who} has no field {wrong!r}.{meant} {listed}")
    required = [item.name for item in known.values() if item.default is item.default_factory is MISSING]
    if missing := [name for name in required if name not in given]:
        raise ValueError(f"{who} needs {' and '.join(missing)}, which is not given. {listed}")
    hints = get_type_hints(declared)
    return declared(**{name: _checked(known[name], hints[name], value, where) for name, value in given.items()})


def _checked(item: Field, hint: Any, value: Any, where: str) -> Any:
    kinds, where = _kinds(hint), f"{where}: {item.name}"
    lists = [get_args(kind) for kind in kinds if get_origin(kind) is list]
    if isinstance(value, list | tuple) and lists:
        return [_of_kinds(lists[0], one, where) for one in value]
    value = _of_kinds(kinds, value, where)
    choices = item.metadata.get("choices")
    if choices and value is not None and value not in choices:
        raise ValueError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}.")
    return value


def _of_kinds(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, Written):
        # A word that looks like a number stays one where a text is expected.
        value = str(value) if str in kinds and value.value is not None else value.value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # A bool is an int to isinstance.
    if type(value) not in kinds:
        said = " or ".join(_kind_text(kind) for kind in kinds)
        more = ""
        if isinstance(value, str) and {int, float} & set(kinds):
            more = " Write it without quotes."
        raise ValueError(f"{where} must be {said}, got {value!r} ({type(value).__name__}).{more}")
    return value


def _kind_text(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"a list of {_kind_text(get_args(kind)[0])}"
    return {type(None): "null", str: "text"}.get(kind, kind.__name__)


def _default_text(item: Field) -> Any:
    return "required" if item.default is item.default_factory is MISSING else default_of(item)


def _kinds(hint: Any) -> tuple[type, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


__all__ = ["Choice", "build_fields"]
