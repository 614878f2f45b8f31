"""Options that name a thing with fields of its own, such as `--objective adaptor`: a name or a mapping."""

from __future__ import annotations

import difflib
import json
import types
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..configs.written import Written, meant, without_repeated_keys
from ..moved import warn_of


@dataclass(frozen=True)
class Choice:
    """
    An option that is a name, or a mapping of `name` and fields.

    Args:
        option (`str`): Its name, such as `"objective"`.
        known (`Mapping[str, type]`): Each name that can be chosen and the dataclass that declares its fields: types,
            defaults, and in the metadata `help`, where values are few `choices`, and `flag=False` where the field has
            never been an option of its own. The first one is the default.
    """

    option: str
    known: Mapping[str, type]

    @property
    def default(self) -> str:
        return next(iter(self.known))

    @property
    def old_flags(self) -> tuple[str, ...]:
        """What were options of their own before there were choices: fields of the default one."""
        return tuple(item.name for item in fields(self.known[self.default]) if item.metadata.get("flag", True))

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
        form = f'a name ({", ".join(self.known)}) or a mapping such as {{"name": "{self.default}", ...}}'
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
        if type(given) in self.known.values():
            return given
        given = self.read(given)
        name = given.pop("name", self.default)
        if not isinstance(name, str) or name not in self.known:
            raise ValueError(f"Unknown {self.option} {name!r}. Known: {', '.join(self.known)}.")
        declared = {item.name: item for item in fields(self.known[name])}
        for wrong in given.keys() - declared.keys():
            close = difflib.get_close_matches(str(wrong), declared, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"The {self.option} {name} has no field {wrong!r}.{meant} Its fields: {', '.join(declared) or 'none'}."
            )
        hints = get_type_hints(self.known[name])
        values = {key: self._checked(declared[key], hints[key], value) for key, value in given.items()}
        return self.known[name](**values)

    def _checked(self, item: Field, hint: Any, value: Any) -> Any:
        kinds, where = _kinds(hint), f"{self.option}: {item.name}"
        if isinstance(value, Written):
            # A word that looks like a number stays one where a text is expected.
            value = str(value) if str in kinds and value.value is not None else value.value
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        # A bool is an int to isinstance.
        if type(value) not in kinds:
            said = " or ".join({type(None): "null", str: "text"}.get(kind, kind.__name__) for kind in kinds)
            more = ""
            if isinstance(value, str) and {int, float} & set(kinds):
                more = " Write it without quotes."
            raise ValueError(f"{where} must be {said}, got {value!r} ({type(value).__name__}).{more}")
        choices = item.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}.")
        return value

    def describe(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Of each name, its fields with default and help, for `--help_all`."""
        return [
            (name, [(f"{item.name} ({item.default})", item.metadata.get("help", "")) for item in fields(declared)])
            for name, declared in self.known.items()
        ]


def _kinds(hint: Any) -> tuple[type, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


__all__ = ["Choice"]
