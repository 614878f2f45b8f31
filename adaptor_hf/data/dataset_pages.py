"""Pages of the documentation about the public data sets, written from their declarations."""

from __future__ import annotations

from pathlib import Path

from ..files import write_aside
from .catalog import PublicDataset, dataset_names, list_datasets, share_images
from .labels import LABEL_POLICIES

_INTRODUCTION = """\
# Public data sets

`load_public_dataset` reads a public data set from the folder it was downloaded to, as it was published: no script
before, no constant to edit. Nothing is downloaded. Images stay where they are.

<!-- not run -->
```python
from adaptor_hf.data import load_public_dataset

parts = load_public_dataset("mimic_cxr", "/data/mimic-cxr-jpg", task="pretraining")
print(parts["train"][0]["text"])
```

`python -m adaptor_hf.data check NAME ROOT` counts what a folder holds: rows, files that are missing or do not open,
rows left out and why, labels, patients in each split and in several.
`train_pretrain.py --dataset NAME --data_root ROOT` trains on any set with the task pretraining. Another set is one file
in `adaptor_hf/data/public`: [CONTRIBUTING.md](../../CONTRIBUTING.md#a-data-set).

Where no official split exists, whole patients are shared out by a hash of their ids. A split of a reference code has
its name; what it is known to leak is said when it is chosen. `describe(parts)` gives what was loaded with the split's
hash.

"Tested" says how far: on made-up files in the real format (fixture), on published tables or samples, or on the whole
set.

| name | data set | tasks | splits | tested | licence |
|---|---|---|---|---|---|
"""

_BY_PATIENT = "whole patients by a hash of their ids, about 80 / 10 / 10 % unless other shares are given"

_RESTRICTED = "Sharing: its terms restrict it; the push of a model that was trained on it asks first"
_NOT_RESTRICTED = "Sharing: no restriction is recorded; read the licence"


def index_page(datasets: list[PublicDataset]) -> str:
    """The table of all data sets."""
    rows = [
        f"| [`{one.name}`]({one.name}.md) | {one.title} | {', '.join(one.tasks)} | {', '.join(_schemes(one))} | "
        f"{one.tested} | {_cell(one.license)} |"
        for one in datasets
    ]
    return _INTRODUCTION + "\n".join(rows) + "\n"


def dataset_page(one: PublicDataset) -> str:
    """The page of a data set: files, tasks, options, splits, policies, traps."""
    lines = [f"# {one.title}", "", f"`load_public_dataset({one.name!r}, root)`", ""]
    lines += [
        f"* Where to get it: {one.homepage}",
        f"* Licence: {one.license}",
        f"* {_RESTRICTED if one.restricted else _NOT_RESTRICTED}",
        f"* Tasks: {', '.join(one.tasks)} (the first is the default)",
        f"* Images are read {'in colour (RGB)' if one.image_mode == 'RGB' else 'as grey (L)'}",
        f"* Tested: {one.tested}",
        f"* A load stops if more than {one.max_fault_share:g} of the rows are faulty",
        "",
    ]
    if same := [
        f"[`{name}`]({name}.md)" for name in dataset_names() if name != one.name and share_images(name, one.name)
    ]:
        lines.insert(-1, f"* Has images in common with: {', '.join(same)}. A test across these sets leaks")
    lines += ["## Files", "", "```", one.expected_files, "```", ""]
    if one.options:
        lines += ["## Options", ""]
        lines += [f"* `{name}={value!r}`: {one.option_help[name]}" for name, value in one.options.items()]
        lines.append("")
    lines += ["## Splits", ""]
    for scheme in _schemes(one):
        note = one.split_notes.get(scheme, _BY_PATIENT)
        leak = f" **Known to leak:** {one.leaks[scheme]}" if scheme in one.leaks else ""
        lines.append(f"* `{scheme}`: {note}{leak}")
    lines.append("")
    policies = [policy for policy in one.label_policies if policy != "raw"]
    if policies:
        lines += ["## Label policies", ""]
        lines += [f"* `{policy}`: {LABEL_POLICIES[policy]}" for policy in ("raw", *policies)]
        lines.append("")
    if one.traps:
        lines += ["## Traps", "", *(f"* {trap}" for trap in one.traps), ""]
    return "\n".join(lines)


def write_pages(folder: Path) -> list[Path]:
    """Write the index and a page a data set; remove pages of sets that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"index.md": index_page(list_datasets())}
    pages |= {f"{one.name}.md": dataset_page(one) for one in list_datasets()}
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        write_aside(folder / name, text)
    return [folder / name for name in pages]


def _schemes(one: PublicDataset) -> list[str]:
    return list(dict.fromkeys((*one.split_schemes, "patient")))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


__all__ = ["dataset_page", "index_page", "write_pages"]
