"""YAML and JSON whose words stay as they were written: `007`, `12:30` and `no` may be an id or a name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = ("", "~", "null")
_WHOLE = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_UNBOUNDED = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)


class Written(str):
    """
    A word without quotes as it was written.

    Attributes:
        value: What it means where a number, a yes or no, or nothing is expected; the word itself where it is neither.
    """

    value: Any

    def __new__(cls, text: str, value: Any = None) -> Written:
        word = super().__new__(cls, text)
        word.value = value
        return word


def meaning(text: str) -> Any:
    """
    A plain YAML word as a bool, an int (`010` is ten), a float (`1e-4` too), None, or itself.

    Words are as in YAML 1.1, numbers as in YAML 1.2: `12:30` and `2024-01-02` are neither.
    """
    if text.lower() in _NULLS:
        return None
    if text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    if _WHOLE.fullmatch(text):
        return int(text, 16 if "x" in text else 8 if "o" in text else 10)
    if _DECIMAL.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _UNBOUNDED.fullmatch(text) else text


def meant(value: Any) -> Any:
    """The same value with what each `Written` word means, at any depth."""
    if isinstance(value, dict):
        return {str(name): meant(item) for name, item in value.items()}
    if isinstance(value, list):
        return [meant(item) for item in value]
    return value.value if isinstance(value, Written) else value


def read_yaml(text: str) -> Any:
    """
    Of a YAML document the lists, mappings, quoted words as `str`, and all other words as `Written`.

    Raises:
        ValueError: it is malformed, or a mapping has a key twice; with the line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            "<": [("tag:yaml.org,2002:merge", re.compile("<<$"))],
            None: [("!written", re.compile(""))],
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            # Before merged keys come in, which may be repeated.
            lines: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if isinstance(key.value, str) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in lines:
                        raise ValueError(f"the key {key.value} is there twice, in lines {lines[key.value]} and {line}")
                    lines[key.value] = line
            return super().construct_mapping(node, deep)

    def written(loader: Any, node: Any) -> Written:
        return Written(node.value, meaning(node.value))

    Loader.add_constructor("!written", written)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_json(text: str) -> Any:
    """
    Of a JSON document the values, numbers as `Written`.

    Raises:
        ValueError: it is malformed, or a mapping has a key twice.
    """
    return json.loads(
        text,
        object_pairs_hook=without_repeated_keys,
        parse_int=lambda word: Written(word, int(word)),
        parse_float=lambda word: Written(word, float(word)),
    )


def without_repeated_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: a mapping, or ValueError where a key is there twice, of which JSON would take the last."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name} is there twice")
        found[name] = value
    return found


__all__ = ["Written", "meaning", "meant", "read_json", "read_yaml", "without_repeated_keys"]
