"""Direct dependencies of this package with the licence that each states, from what is installed."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata, requires

from ..markdown import one_line, table_row

PACKAGE = "adaptor-hf"


def list_dependencies() -> list[dict[str, str]]:
    """
    `name`, `needed` (the bound), `extra` (empty for the core), `version` and `license` of each direct dependency.

    A version is empty where the package is not installed; a licence is `not stated` where its metadata say nothing.
    """
    found = []
    for line in requires(PACKAGE) or []:
        requirement, _, marker = line.partition(";")
        name, _, bound = re.match(r"([\w.-]+)(\[[^\]]*\])?\s*(.*)", requirement.strip()).groups()
        if name == PACKAGE:
            continue  # an extra that names other extras
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        try:
            stated = metadata(name)
        except PackageNotFoundError:
            version, license_name = "", "not installed"
        else:
            version, license_name = stated["Version"], stated_license(stated)
        found.append(
            {
                "name": name,
                "needed": bound.strip(),
                "extra": extra[1] if extra else "",
                "version": version,
                "license": license_name,
            }
        )
    return found


def stated_license(stated) -> str:
    """Licence expression, else classifier, else the first line of the free field; of a package's metadata."""
    if expression := stated.get("License-Expression"):
        return expression
    for classifier in stated.get_all("Classifier") or []:
        if classifier.startswith("License :: OSI Approved :: "):
            return classifier.rpartition(" :: ")[2]
    line = (stated.get("License") or "").strip().partition("\n")[0]
    return line if line and line != "UNKNOWN" else "not stated"


def dependency_table() -> str:
    """`list_dependencies` as a Markdown table."""
    lines = ["| package | needed | extra | installed | licence |", "|---|---|---|---|---|"]
    for one in list_dependencies():
        # What others' packages say of themselves; names and version ranges are code.
        code = " | ".join(f"`{one_line(one[name]).replace('|', '').replace('`', '')}`" for name in ("name", "needed"))
        lines.append(f"| {code} {table_row([one['extra'], one['version'], one['license']])}")
    return "\n".join(lines)


__all__ = ["dependency_table", "list_dependencies", "stated_license"]
