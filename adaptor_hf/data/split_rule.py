"""`SplitRule`: which patients are held out, one rule for pre-training and for everything that is evaluated later."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from .splits import (
    DEFAULT_SEED,
    assign_splits,
    check_disjoint,
    check_shares,
    rename_splits,
    split_training_rows,
)

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

PATIENT, GIVEN, SEVERAL = "patient", "given", "several"
_VERSION = 1  # raise it when equal fields would split another way


@dataclass(frozen=True)
class SplitRule:
    """
    How a data set was split, so that it can be split the same way again. The defaults are those of both scripts.

    Args:
        scheme (`str`): `patient` (a hash of each patient's id), `given` (the table's own column), or the name of a
            public data set's split, such as `official` or `mgca`.
        seed (`int`): Of the hash.
        validation_fraction, test_fraction (`float`): Shares of patients in [0, 1), together under 1.
        ids (`str`): `canonical` (spellings of one id are one patient) or `exact`.
        dataset (`str`, *optional*): The public data set that a named scheme belongs to.
        sources (`tuple[tuple[str, str], ...]`): Of several sources, each with its own scheme: public data sets by name,
            others as `source_1`. `scheme` is then `several`.

    Raises:
        ValueError: impossible shares, or an unknown way to read ids.
    """

    scheme: str = PATIENT
    seed: int = DEFAULT_SEED
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    ids: str = "canonical"
    dataset: str | None = None
    sources: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        check_shares(self.validation_fraction, self.test_fraction)
        if self.ids not in ("canonical", "exact"):
            raise ValueError(f"ids is canonical or exact, got {self.ids!r}.")

    @property
    def hash(self) -> str:
        """12 hex digits over all fields: two runs with equal ones split any table alike."""
        return hashlib.sha256(json.dumps([_VERSION, self._fields()], sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's config, with the hash."""
        return self._fields() | {"hash": self.hash}

    def _fields(self) -> dict[str, Any]:
        # Of one source nothing is said of several: hashes and configs stay what they were.
        found = asdict(self)
        sources = found.pop("sources")
        return found | ({"sources": [list(source) for source in sources]} if sources else {})

    @classmethod
    def of_sources(cls, rules: Mapping[str, SplitRule]) -> SplitRule:
        """
        The one rule of several sources; seed, shares and reading of ids are the same in all of them.

        Args:
            rules (`Mapping[str, SplitRule]`): By what a card may call the source, two or more.
        """
        first = next(iter(rules.values()))
        schemes = tuple((name, rule.scheme) for name, rule in rules.items())
        return replace(first, scheme=SEVERAL, dataset=None, sources=schemes)

    def of(self, dataset: str | None) -> SplitRule:
        """
        The rule of one data set: of several sources that of the public data set of this name, and otherwise, as for a
        table, by patient (or by the table's own column). A rule of one source is its own.
        """
        if not self.sources:
            return self
        scheme = dict(self.sources).get(dataset)
        return replace(self, scheme=scheme or PATIENT, dataset=dataset if scheme else None, sources=())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SplitRule:
        """
        The rule of a checkpoint's config.

        Raises:
            ValueError: fields are unknown, or do not give the hash beside them: the rule was edited, or another
                version of this package wrote it.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known - {"hash"}):
            raise ValueError(f"The split rule has unknown fields: {', '.join(unknown)}. Update adaptor_hf.")
        given = {name: value for name, value in values.items() if name in known}
        if "sources" in given:
            given["sources"] = tuple((str(name), str(scheme)) for name, scheme in given["sources"])
        rule = cls(**given)
        if values.get("hash", rule.hash) != rule.hash:
            raise ValueError(
                f"The split rule's fields give the hash {rule.hash}, beside them stands {values['hash']}: it was "
                "edited, or another version of this package wrote it. Name the split with --split_column, or train "
                "anew."
            )
        return rule

    def with_options(self, **options: Any) -> SplitRule:
        """The rule with those of its fields that were given on the command line; None was not given."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})

    def apply(self, table: Dataset, aliases: Sequence[str] = ()) -> tuple[Dataset, SplitRule]:
        """
        A table with a split on every row, and the rule that this was: `given` where the table brought its splits.

        A table that has a training part but no validation part gets one from its training patients: nothing is to be
        chosen on the test part.

        Args:
            table (`datasets.Dataset`): With the columns of `load_pairs`.
            aliases (`Sequence[str]`): `old=new` renames of splits.

        Raises:
            ValueError: a split on some rows only, a patient in several splits, or impossible aliases.
        """
        table = rename_splits(table, aliases)
        given = set(table.unique("split")) if "split" in table.column_names else {None}
        options = {"seed": self.seed, "ids": self.ids}
        if "train" in given and not given & {"validation", None}:
            logger.warning("The table has no validation split: taking one from its training patients.")
            table = split_training_rows(table, validation_fraction=self.validation_fraction, **options)
        else:
            shares = {"validation_fraction": self.validation_fraction, "test_fraction": self.test_fraction}
            table = assign_splits(table, **shares, **options)
        check_disjoint(table, ids=self.ids)
        return table, replace(self, scheme=PATIENT if given == {None} else GIVEN, dataset=None)


__all__ = ["GIVEN", "PATIENT", "SEVERAL", "SplitRule"]
