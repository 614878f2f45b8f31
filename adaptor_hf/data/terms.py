"""Training data whose terms restrict what may be shared: a push of a model that was trained on them asks first."""

import re

from .catalog import dataset_names, get_dataset


def restricted_terms(*names: str | None) -> dict[str, str] | None:
    """
    Terms of those of the named data sets that restrict sharing, as the catalogue states them; `None` if there is none.

    Args:
        names: Names of the catalogue, or what a user calls the data: "MIMIC-CXR" counts as `mimic_cxr`.
    """
    found = {}
    for name in filter(None, names):
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        # The longest name that fits: chexpert_5x200 also begins with chexpert.
        fits = [known for known in dataset_names() if plain.startswith(known.replace("_", ""))]
        known = max(fits, key=len, default=None)
        if known is not None and get_dataset(known).restricted:
            found[known] = get_dataset(known).license
    return found or None


def check_consent(terms: dict[str, str] | None, accepted: bool) -> None:
    """
    Nothing happens where no terms restrict sharing, or they were accepted.

    Raises:
        PermissionError: naming the data sets, their terms, and how to say that they allow the push.
    """
    if terms and not accepted:
        listed = "\n".join(f"    {name}: {text}" for name, text in terms.items())
        raise PermissionError(
            "This model was trained on data whose terms restrict what may be shared, and nothing was pushed:\n"
            f"{listed}\nRead the terms that you have signed. If they allow this push, say so: --accept_data_terms, or "
            "push_folder(..., accept_data_terms=True)."
        )


__all__ = ["check_consent", "restricted_terms"]
