"""From a recipe and the command line to the dataclasses of a script, with a `--help` that can be read."""

from __future__ import annotations

import argparse
import copy
import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, get_origin

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..configs.written import meant
from .arguments import OptionFormatter, add_options, name_value
from .choices import Choice
from .fields import own_metadata

logger = logging.getLogger(__name__)

_GIVEN, _END_OF_RECIPE = "lists given so far", "--end-of-recipe"
ESSENTIAL, OTHERS = "essential", "more of training, most of it transformers' own"


class OptionParser(HfArgumentParser):
    """
    `HfArgumentParser` with recipes, choices (`--objective NAME or JSON`) and a short `--help`.

    Args:
        groups (`Sequence[type]`): Dataclasses; fields declared by `option` say where they stand in `--help`.
        command (`str`): How the script was started, for messages.
        titles (`Sequence[str]`): Parts of `--help` in their order, after the essential options.
        essential (`Sequence[str]`): Options that come first, in this order.
        placed (`Mapping[str, tuple[str, str]]`, *optional*): Of fields that `option` did not declare, such as
            transformers' own, the part of `--help` and, where theirs does not fit, the help; in the order of the
            mapping. All others are for `--help_all`.
        left (`Mapping[str, Any]`, *optional*): What options without a default are in this script where they are not
            given.
        elsewhere (`Mapping[str, str]`, *optional*): Options of other programs, and what they are here.
        choices (`Sequence[Choice]`): Options with fields of their own. What these were as options of their own is still
            understood, with a warning.
        trust (`str`, *optional*): The option that lets a recipe choose code of a file for one of `choices`. It stands
            on the command line alone: a recipe cannot vouch for itself.
    """

    def __init__(
        self,
        groups: Sequence[type],
        command: str,
        *,
        titles: Sequence[str],
        essential: Sequence[str],
        placed: Mapping[str, tuple[str, str | None]] | None = None,
        left: Mapping[str, Any] | None = None,
        elsewhere: Mapping[str, str] | None = None,
        choices: Sequence[Choice] = (),
        trust: str | None = None,
    ):
        self.trust = trust
        self.command, self.essential = command, tuple(essential)
        self.placed, self.left, self.elsewhere = placed or {}, left or {}, elsewhere or {}
        self.choices = {choice.option: choice for choice in choices}
        self.old_flags = {name: choice for choice in choices for name in choice.old_flags}
        self.names = {item.name for group in groups for item in fields(group) if item.init}
        self._parts: dict[str, Any] = {}
        self._titles = (ESSENTIAL, *titles, OTHERS)
        self._advanced: set[int] = set()
        self._lower: dict[str, dict[str, Any]] = {}
        super().__init__(
            groups,
            usage=f"{command} [--recipe NAME_OR_FILE] --OPTION VALUE ...",
            formatter_class=OptionFormatter,
            add_help=False,
        )
        recipe = self._part(ESSENTIAL).add_argument(
            "--recipe",
            metavar="NAME_OR_FILE",
            default=argparse.SUPPRESS,
            help="Options of a YAML or JSON file, or of a packaged recipe (python -m adaptor_hf.configs lists them); "
            "those beside it win.",
        )
        recipe.rank = -1
        part = self._part("help")
        part.add_argument("-h", "--help", action=_Help, help="The options that are needed most.")
        part.add_argument("--help_all", "--help-all", action=_Help, help="All options.")
        self.add_argument(_END_OF_RECIPE, action=_EndOfRecipe)
        for name in self.old_flags.keys() - self.names:
            self.old_flags[name].add_old_flag(self, name)

    def parse(self, words: Sequence[str], recipe: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """
        Instances of the dataclasses.

        Args:
            words (`Sequence[str]`): The command line, without a recipe.
            recipe (`Mapping`, *optional*): Options by name; those of the command line win, of a choice field by field.

        Raises:
            ValueError: unknown options or keys, or what the dataclasses refuse.
            SystemExit: for a value of the wrong type, as argparse does.
        """
        recipe = dict(recipe or {})
        if unknown := sorted(map(str, recipe.keys() - self.names - self.old_flags.keys())):
            hint = self._meant(f"--{unknown[0]}").replace("--", "")
            raise ValueError(
                f"Unknown keys in the recipe: {', '.join(map(repr, unknown))}.{hint} See {self.command} --help_all."
            )
        if self.trust in recipe:
            raise ValueError(
                f"{self.trust} stands in the recipe, which cannot vouch for itself. Take it out; on the command line "
                f"--{self.trust} True says that you trust the recipe."
            )
        old = argparse.ArgumentParser(add_help=False, usage=self.usage)
        for name, choice in self.old_flags.items():
            choice.add_old_flag(old, name)
        given = [word for name in self.old_flags if name in recipe for word in as_option(name, meant(recipe.pop(name)))]
        self._lower = self._choices_of(
            vars(old.parse_args(given))
            | {name: value for name in self.choices if meant(value := recipe.pop(name, None)) is not None}
        )
        # As if typed first: argparse then converts and checks the values, and later options win.
        typed = [word for name, value in self.as_expected(recipe).items() for word in as_option(name, value)]
        return self.parse_args_into_dataclasses([*typed, _END_OF_RECIPE, *words])

    def _refuse(self, rest: Sequence[str]) -> None:
        """Words that belong to no option. Of them only options are said: what stands for a value may be an id."""
        if not rest:
            return
        unknown = [word.partition("=")[0] for word in rest if word.startswith("--")]
        if unknown:
            raise ValueError(
                f"There is no option '{unknown[0]}'.{self._meant(unknown[0])} See {self.command} --help_all."
            )
        count = f"{len(rest)} words belong" if len(rest) > 1 else "A word belongs"
        raise ValueError(f"{count} to no option: quote what has blanks, and see {self.command} --help.")

    def _meant(self, option: str) -> str:
        if option in self.elsewhere:
            return f" Here it is {self.elsewhere[option]}."
        known = {name for name in self._option_string_actions if name.startswith("--") and "-" not in name[2:]}
        close = difflib.get_close_matches(option.replace("-", "_").replace("__", "--", 1), known, n=1)
        return f" Did you mean {close[0]}?" if close else ""

    def as_expected(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """
        A recipe, or a job of a sweep, with a number or a bool where the option is one, and otherwise what was written.
        What has no value is left out.
        """
        found = {}
        for name, value in recipe.items():
            kind = getattr(self._option_string_actions.get(f"--{name}"), "type", None)
            if isinstance(value, list):
                found[name] = [_as_expected(kind, item) for item in value]
            elif meant(value) is not None:
                found[name] = _as_expected(kind, value)
            elif value and kind not in (int, float, string_to_bool):
                logger.warning(f"{name}: {value} in the recipe is no value, quote it where it is a word.")
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        namespace, rest = super().parse_known_args(args, namespace)
        # Before the dataclasses look for what is missing: a mistyped option is often why.
        self._refuse(rest)
        given = vars(namespace)
        given.pop(_GIVEN, None)
        if "recipe" in given:
            raise ValueError("--recipe is not abbreviated.")
        higher = self._choices_of({name: given.pop(name) for name in (*self.choices, *self.old_flags) if name in given})
        for name, choice in self.choices.items():
            merged = choice.merge(self._lower.get(name, {}), higher[name])
            if choice.names_code(merged) and "name" not in higher[name] and not given.get(self.trust):
                raise ValueError(
                    f"The recipe names code for {name}: {merged['name']!r}, which would run as this user. If you trust "
                    f"it, say so on the command line: --{self.trust} True, or name it there: --{name}."
                )
            built = choice.build(merged)
            given[name] = built
            # The trainer reads them from its own arguments.
            given.update(
                {item: getattr(built, item, usual) for item, usual in choice.old_flags.items() if item in self.names}
            )
        return namespace, rest

    def format_help(self, everything: bool = False) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        left_out = 0
        for title in sorted(self._parts, key=self._rank):
            actions = [action for action in self._parts[title]._group_actions if action.help is not argparse.SUPPRESS]
            shown = [action for action in actions if everything or id(action) not in self._advanced]
            left_out += len({action.dest for action in actions} - {action.dest for action in shown})
            formatter.start_section(title)
            formatter.add_arguments(sorted(shown, key=lambda action: getattr(action, "rank", 0)))
            formatter.end_section()
        if everything:
            for choice in self.choices.values():
                for name, described in choice.describe():
                    formatter.start_section(f"fields of --{choice.option} {name}")
                    formatter.add_arguments(
                        [
                            argparse.Action([], field_name, help=text, metavar=field_name)
                            for field_name, text in described
                        ]
                    )
                    formatter.end_section()
        else:
            of_transformers = ", and transformers' own" if OTHERS in self._parts else ""
            formatter.add_text(f"--help_all shows {left_out} more: rarely needed ones{of_transformers}.")
        return formatter.format_help()

    def _rank(self, title: str) -> int:
        return self._titles.index(title) if title in self._titles else len(self._titles)

    def _choices_of(self, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Of each choice what one source, a recipe or the command line, gives."""
        found = {}
        for name, choice in self.choices.items():
            mapping = choice.read(given[name]) if name in given else {}
            found[name] = choice.with_old_flags(mapping, {old: given[old] for old in choice.old_flags if old in given})
        return found

    def _part(self, title: str) -> Any:
        if title not in self._parts:
            self._parts[title] = self.add_argument_group(title)
        return self._parts[title]

    def _parse_dataclass_field(self, parser: Any, field: Field) -> None:
        if field.name in self.old_flags:
            self.old_flags[field.name].add_old_flag(self, field.name)
            return
        own = own_metadata(field)
        title, text = self.placed.get(field.name, (OTHERS, None))
        title, advanced = own["group"] or title, own["advanced"] or (own["group"] or title) == OTHERS
        if field.name in self.essential:
            title, advanced = ESSENTIAL, False
        # Of others the last one counts, as everywhere in argparse.
        repeatable = get_origin(field.type) is list and "repeatable" in field.metadata.get("help", "")
        more = {"action": _Extend} if repeatable else {}
        added = _add_field(self._part(title), field, **more)
        ranked = self.essential if title == ESSENTIAL else tuple(self.placed)
        for action in added:
            action.rank = ranked.index(field.name) if field.name in ranked else 0
            action.help, action.left = text or action.help, self.left.get(field.name)
            if field.name in self.choices:
                action.default, action.left = argparse.SUPPRESS, self.choices[field.name].default
            if advanced:
                self._advanced.add(id(action))


def _add_field(parser: Any, field: Field, **more: Any) -> list[argparse.Action]:
    """The options that transformers' parser makes of a field whose type is resolved; `more` is passed to argparse."""
    plain, own = copy.copy(field), own_metadata(field)
    plain.metadata = {name: value for name, value in field.metadata.items() if name not in own} | more
    before = len(parser._actions)
    HfArgumentParser._parse_dataclass_field(parser, plain)
    for action in (added := parser._actions[before:]):
        name_value(action, own["privacy"], string_to_bool)
    return added


class _Help(argparse.Action):
    """`--help`, or all of it where the option ends in "all"."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(parser.format_help(everything=(option_string or "").endswith("all")), end="")
        parser.exit()


class _Extend(argparse.Action):
    """A list that may be repeated: the first of the command line, or of the recipe, replaces, the next ones add."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = vars(namespace).setdefault(_GIVEN, set())
        before = getattr(namespace, self.dest) if self.dest in given else []
        setattr(namespace, self.dest, [*before, *values])
        given.add(self.dest)


class _EndOfRecipe(argparse.Action):
    """Between the words of a recipe and those that were typed."""

    def __init__(self, option_strings: Sequence[str], dest: str):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        vars(namespace)[_GIVEN] = set()


def _as_expected(kind: Any, value: Any) -> Any:
    """A value of a recipe as what an option of this type takes."""
    plain = meant(value)
    if isinstance(value, dict):
        return plain
    wanted = {string_to_bool: (bool,), int: (int,), float: (int, float)}.get(kind, ())
    return plain if type(plain) in wanted else value


def as_option(name: str, value: Any) -> list[str]:
    """
    An entry of a recipe as words of a command line; an empty one (null, []) is left at its default.

    Raises:
        ValueError: a list with a word that a command line would take for an option.
    """
    if value is None or value == []:
        return []
    if isinstance(value, list):
        if wrong := [item for item in value if str(item).startswith("--")]:
            raise ValueError(f"{name}: {str(wrong[0])!r} in the list looks like an option. Values begin without '--'.")
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


__all__ = ["OptionFormatter", "OptionParser", "add_options", "as_option"]
