"""Saved folders on a machine without `adaptor_hf`: the code they must carry, and the start of a script there."""

import ast
from pathlib import Path

import adaptor_hf

PACKAGE = Path(adaptor_hf.__file__).parent

WITHOUT_PACKAGE = """
import builtins, sys
real = builtins.__import__
def guard(name, *args, **kwargs):
    if name.split(".")[0] == "adaptor_hf":
        raise ModuleNotFoundError(name)
    return real(name, *args, **kwargs)
builtins.__import__ = guard
"""


def relative_imports(path: Path) -> set[str]:
    """Files that a flat file imports, inside functions too; fails on what transformers does not copy along."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert (node.level, (node.module or ".").count(".")) == (1, 0), f"{path.name}:{node.lineno}"
            found.add(f"{node.module}.py")
    return found


def code_of(*objects) -> set[str]:
    """Names of the flat files that define these classes, and of all that those import."""
    wanted = {f"{kind.__module__.rpartition('.')[2]}.py" for kind in objects}
    found: set[str] = set()
    while wanted:
        found |= wanted
        wanted = set().union(*(relative_imports(PACKAGE / name) for name in wanted)) - found
    return found


def saved_code(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.py")}
