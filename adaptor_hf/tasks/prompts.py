"""Prompt sets for zero-shot classification: those of the package, any JSON file, and SLIP's labels and templates."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.positive import is_negative
from ..files import read_json

FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class PromptSet:
    """
    Texts for the classes of a task.

    Args:
        name (`str`): For results.
        positive (`dict[str, tuple[str, ...]]`): Of each class, texts that say it is there.
        negative (`dict[str, tuple[str, ...]]`): Of each class, texts that deny it; none for exclusive classes.
        exclusive (`bool`): Whether an image has exactly one class.
        any_label (`bool`): Whether the only class stands for the only label of a data set, whatever that is called.
    """

    name: str
    positive: dict[str, tuple[str, ...]]
    negative: dict[str, tuple[str, ...]]
    exclusive: bool = False
    any_label: bool = False

    @property
    def digest(self) -> str:
        """8 hex digits over all texts: results carry it."""
        texts = json.dumps([self.positive, self.negative], sort_keys=True)
        return hashlib.sha256(texts.encode()).hexdigest()[:8]

    def draw(self, count: int | None, seed: int) -> PromptSet:
        """At most `count` texts a class (and of its denial), drawn without replacement; `None` keeps all."""
        if count is None:
            return self
        generator = np.random.default_rng(seed)

        def drawn(texts: tuple[str, ...]) -> tuple[str, ...]:
            places = np.sort(generator.permutation(len(texts))[:count])
            return tuple(texts[place] for place in places)

        sides = [{name: drawn(texts) for name, texts in side.items()} for side in (self.positive, self.negative)]
        return PromptSet(self.name, *sides, self.exclusive, self.any_label)

    def for_classes(self, class_names: Sequence[str], exclusive: bool) -> PromptSet:
        """
        The prompts in the order of a data set's classes; names are compared without case.

        Raises:
            ValueError: a class without prompts, or prompts for the other kind of task.
        """
        if exclusive != self.exclusive:
            kinds = ("labels of their own", "classes that exclude each other")
            raise ValueError(f"Prompts {self.name} are for {kinds[self.exclusive]}, the data has {kinds[exclusive]}.")
        if self.any_label and len(class_names) == 1:
            if is_negative(class_names[0]):
                raise ValueError(
                    f"Prompts {self.name} name a finding, and the positive class is {class_names[0]!r}, its absence: "
                    "leave out --positive_label, or write a JSON file of prompts with that class."
                )
            only = next(iter(self.positive))
            return PromptSet(self.name, {class_names[0]: self.positive[only]}, {class_names[0]: self.negative[only]})
        known = {name.lower(): name for name in self.positive}
        if missing := [name for name in class_names if name.lower() not in known]:
            raise ValueError(
                f"Prompts {self.name} have no class {', '.join(missing)}; they have {', '.join(self.positive)}. Choose "
                "labels with --classes, or write a JSON file of prompts."
            )
        sides = [
            {name: side[known[name.lower()]] for name in class_names if known[name.lower()] in side}
            for side in (self.positive, self.negative)
        ]
        return PromptSet(self.name, *sides, self.exclusive)


def list_prompt_sets() -> list[str]:
    """Names of the prompt sets in the package."""
    return sorted([path.stem for path in FOLDER.glob("*.json")] + ["phantom"])


def load_prompts(source: str | os.PathLike) -> PromptSet:
    """
    A prompt set.

    Args:
        source: A name of `list_prompt_sets`; a JSON file; or `labels.json:templates.json:NAME`, files of SLIP.
            A JSON file is {"classes": {"effusion": {"positive": [...], "negative": [...]}}}, with "exclusive": true
            for classes that exclude each other (then a class may be a list of texts alone), and optional "templates",
            such as ["an x-ray with {}"], that every text is put into. {"parts": [[...], [...]]} in place of a list is
            every combination of the parts, joined by blanks.

    Raises:
        FileNotFoundError: no such name or file.
        ValueError: a file of another form, naming it and the class.
    """
    name = str(source)
    if name == "phantom":
        from ..phantom.prompts import ZERO_SHOT_PROMPTS

        positive, negative = ({key: tuple(pair[side]) for key, pair in ZERO_SHOT_PROMPTS.items()} for side in (0, 1))
        return PromptSet(name, positive, negative)
    if name.count(":") == 2 and ".json:" in name:
        return slip_prompts(*name.rsplit(":", 2))
    path = FOLDER / f"{name}.json" if name in list_prompt_sets() else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"No prompts {name!r}: neither a file nor one of {', '.join(list_prompt_sets())}.")
    content = _read(path)
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict) or not content["classes"]:
        raise ValueError(f'{path}: expected {{"classes": {{NAME: {{"positive": [...], "negative": [...]}}}}}}.')
    exclusive, templates = bool(content.get("exclusive", False)), content.get("templates", ["{}"])
    positive, negative = {}, {}
    for label, texts in content["classes"].items():
        if not isinstance(texts, dict):
            texts = {"positive": texts}
        positive[label] = _texts(texts.get("positive"), templates, f"{path}, class {label!r}")
        if "negative" in texts:
            negative[label] = _texts(texts["negative"], templates, f"{path}, class {label!r}")
        elif not exclusive:
            raise ValueError(f'{path}, class {label!r}: a label of its own needs "negative" texts to compare with.')
    return PromptSet(path.stem, positive, {} if exclusive else negative, exclusive, bool(content.get("any_label")))


def slip_prompts(labels: str | os.PathLike, templates: str | os.PathLike, name: str) -> PromptSet:
    """
    Prompts of one of SLIP's data sets: `labels.json` (class names, or lists of synonyms) and `templates.json`.

    Raises:
        ValueError: the data set is in only one of the files, or a file has another form.
    """
    classes, forms = _read(Path(labels)), _read(Path(templates))
    for path, content in ((labels, classes), (templates, forms)):
        if not isinstance(content, dict) or name not in content:
            raise ValueError(f"{path} has no data set {name!r}; it has {', '.join(map(str, content))}.")
    positive = {}
    for entry in classes[name]:
        synonyms = [entry] if isinstance(entry, str) else list(entry)
        positive[synonyms[0]] = _texts(synonyms, forms[name], f"{labels}, {synonyms[0]!r}")
    if len(positive) != len(classes[name]):
        raise ValueError(f"{labels}: {name!r} has the same class name twice.")
    return PromptSet(name, positive, {}, exclusive=True)


def _texts(texts: Any, templates: Sequence[str], where: str) -> tuple[str, ...]:
    if isinstance(texts, dict) and set(texts) == {"parts"}:
        texts = [" ".join(word for word in words if word) for words in itertools.product(*texts["parts"])]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}: expected a list of texts, at least one.")
    if wrong := [form for form in templates if form.count("{}") != 1]:
        raise ValueError(f"{where}: a template has one {{}}, got {wrong[0]!r}.")
    return tuple(form.replace("{}", text) for form in templates for text in texts)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


__all__ = ["PromptSet", "list_prompt_sets", "load_prompts", "slip_prompts"]
