"""Which class of torchxrayvision's classifiers a label of a data set is: by name, where it says the same finding."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

SAME = {
    "Effusion": ("pleural effusion",),
    "Pleural_Thickening": ("pleural thickening",),
    "Infiltration": ("infiltrate", "infiltrates"),
    "Atelectasis": ("atelectases",),
    "Lung Opacity": ("airspace opacity", "opacity"),
    "Lung Lesion": ("lesion",),
    "Fibrosis": ("pulmonary fibrosis",),
}
"""
Other names of torchxrayvision's classes, as its own `datasets.py` (1.5.7) maps them: CheXpert's, MIMIC-CXR's and
VinDr-CXR's pleural effusion; VinDr-CXR's pleural thickening and pulmonary fibrosis; infiltrate(s), atelectases, opacity
and lesion of OpenI and PadChest; airspace opacity of Google's labels. A narrower or wider finding is no other name:
CheXpert's "Pleural Other" is no thickening.
"""
AMBIGUOUS = {"nodule/mass": ("Nodule", "Mass"), "nodule or mass": ("Nodule", "Mass")}
"""Names that join two of its classes (Google's labels, VinDr-CXR): which score stands for them is the user's to say."""


class MatchedLabels(NamedTuple):
    """Of a data set's classes: the classifier's class of each that it knows, and names of the others."""

    known: dict[str, str]
    unknown: list[str]
    ambiguous: list[str]


def match_labels(
    classes: Sequence[str], theirs: Sequence[str], given: Mapping[str, str] | None = None
) -> MatchedLabels:
    """
    The class of a classifier for each class of a data set, as far as its name tells.

    Args:
        classes: Of the data set; case, blanks and underscores count alike.
        theirs: Classes that the classifier gives scores for.
        given (*optional*): A class of the data set to one of the classifier's, before any other rule.

    Raises:
        ValueError: `given` names a class that there is not, on either side.
    """
    given = dict(given or {})
    for place, names, known in (("data set", given, classes), ("classifier", given.values(), theirs)):
        if wrong := [name for name in names if name not in known]:
            raise ValueError(
                f"--supervised_label: the {place} has no class {wrong[0]!r}. It has {', '.join(known)}. Write "
                "MINE=ITS, such as 'Nodule/Mass=Nodule'."
            )
    spellings = {_plain(name): name for name in theirs}
    spellings |= {_plain(other): name for name, others in SAME.items() if name in theirs for other in others}
    found = MatchedLabels({}, [], [])
    for name in classes:
        if own := given.get(name) or spellings.get(_plain(name)):
            found.known[name] = own
        elif any(one in theirs for one in AMBIGUOUS.get(_plain(name), ())):
            found.ambiguous.append(name)
        else:
            found.unknown.append(name)
    return found


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


__all__ = ["AMBIGUOUS", "SAME", "MatchedLabels", "match_labels"]
