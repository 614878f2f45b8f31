"""The imports of a package, those inside functions too, and what is wrong with them."""

import ast
import re
from functools import cache
from pathlib import Path

# From the lowest to the highest. A file imports its own room and lower ones.
ROOMS = (
    "flat",
    "moved",
    "files",
    "file_records",
    "markdown",
    "progress",
    "configs",
    "options",
    "privacy",
    "folder_lock",
    "conversion",
    "towers",
    "auto_classes",
    "data",
    "data.public",
    "data.pacs",
    "phantom",
    "embeddings",
    "objectives",
    "evaluation",
    "hub",
    "training",
    "tasks",
    "prediction",
    "audit",
    "pipelines",
    "verify",
    "old_names",
)


# Imports by a name in a string, which climb: from, to and why.
BY_NAME = {
    ("evaluation.tasks", "tasks"): "a task's function is imported when the task runs; the declaration is read by all",
    ("data.catalog", "data.public"): "data sets are found by being there",
    ("image_values_adaptor", "data.images"): "a processor reads files as training does",
}


def modules_of(package: Path) -> dict[str, Path]:
    """Name of each module of a package and its file."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(package: Path) -> dict[str, dict[str, int]]:
    """Of each module the modules of the package that it imports, anywhere in it but for type checkers, with a line."""
    modules = modules_of(package)
    allowed = {(f"adaptor_hf.{a}", f"adaptor_hf.{b}") for a, b in BY_NAME}
    found: dict[str, dict[str, int]] = {name: {} for name in modules}
    for name, path in modules.items():
        for target, line in _imports_in(path.read_text(encoding="utf-8"), name, path.name == "__init__.py"):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                found[name].setdefault(target, line)
        if room_of(name) == "moved":
            continue  # a table of old and new names
        for target, line in _named_in(path.read_text(encoding="utf-8"), name, path.name == "__init__.py"):
            climbs_with_leave = any(name == a and f"{target}.".startswith(f"{b}.") for a, b in allowed)
            if target in modules and target != name and not climbs_with_leave:
                found[name].setdefault(target, line)
    return found


@cache
def _imports_in(text: str, name: str, is_package: bool) -> tuple[tuple[str, int], ...]:
    """What a module's text imports, with lines. Kept: the tests look at several copies of the package."""
    return tuple(
        (target, node.lineno) for node in _walk(ast.parse(text)) for target in targets_of(node, name, is_package)
    )


@cache
def _named_in(text: str, name: str, is_package: bool) -> tuple[tuple[str, int], ...]:
    """Modules that a module names in a call of `import_module` or in a `module:name`, with lines."""
    package = name if is_package else name.rpartition(".")[0]
    found = []
    for node in _walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            found += [(target, node.lineno) for target in _texts(node.args[:1], name, package)]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"adaptor_hf(\.\w+)+:\w+", str(node.value)):
            found.append((node.value.partition(":")[0], node.lineno))
    return tuple(found)


def _texts(nodes: list[ast.expr], name: str, package: str) -> list[str]:
    """Strings as they are; of an f-string what begins it, with `__name__` and `__package__` filled in."""
    found = []
    for node in nodes:
        text = ""
        for part in node.values if isinstance(node, ast.JoinedStr) else [node]:
            value = getattr(part, "value", None)
            filled = {"__name__": name, "__package__": package}.get(getattr(value, "id", None))
            if filled is None and not isinstance(value, str):
                break
            text += filled or value
        found.append(text.rstrip("."))
    return found


def _walk(node: ast.AST):
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        for child in node.orelse:
            yield from _walk(child)
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)


def targets_of(node: ast.AST, name: str, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = ""
    if node.level:
        parts = name.split(".") if is_package else name.split(".")[:-1]
        base = ".".join(parts[: len(parts) - node.level + 1])
    module = ".".join(filter(None, (base, node.module)))
    return [f"{module}.{alias.name}" for alias in node.names]


def room_of(name: str) -> str | None:
    """Room of a module; None of an entry point (`__main__`) and of the package itself, which nothing stands above."""
    parts = name.split(".")[1:]
    if not parts or parts[-1] == "__main__":
        return None
    if parts[0].endswith("_adaptor"):
        return "flat"
    return ".".join(parts[:2]) if ".".join(parts[:2]) in ROOMS else parts[0]


def faults_of(package: Path) -> list[str]:
    """Climbs (a room imports a higher one), imports of entry points, rooms that have no place, and cycles."""
    imports = imports_of(package)
    faults = []
    for name, targets in imports.items():
        room = room_of(name)
        if room is not None and room not in ROOMS:
            faults.append(f"{name} is in the room {room}, which has no place in ROOMS")
            continue
        for target, line in targets.items():
            other = room_of(target)
            if other is None and target.endswith("__main__"):
                faults.append(f"{name}:{line} imports the entry point {target}")
            elif room is not None and (other is None or (other in ROOMS and ROOMS.index(other) > ROOMS.index(room))):
                faults.append(f"{name}:{line} climbs from {room} to {target}")
    return faults + [f"cycle: {' -> '.join([*cycle, cycle[0]])}" for cycle in cycles_of(imports)]


def cycles_of(imports: dict[str, dict[str, int]]) -> list[list[str]]:
    """Cycles, at least one of each group of modules that import one another, but for an `__init__` and its parts."""
    graph = {
        name: {other for other in targets if not name.startswith(f"{other}.")} for name, targets in imports.items()
    }
    state: dict[str, int] = {}
    found: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        state[name] = 1
        for other in sorted(graph[name]):
            if state.get(other) == 1:
                found.append(path[path.index(other) :])
            elif other not in state:
                visit(other, [*path, other])
        state[name] = 2

    for name in sorted(graph):
        if name not in state:
            visit(name, [name])
    # Two with a module in common are of one group.
    groups: list[list[str]] = []
    for cycle in found:
        if not any(set(cycle) & set(other) for other in groups):
            groups.append(cycle)
    return groups
