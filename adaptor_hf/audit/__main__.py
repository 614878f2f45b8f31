"""`python -m adaptor_hf.audit checklists RUN`, `table1 TABLE_OR_CACHE` and `dependencies`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from ..files import write_aside
from ..options.arguments import OptionFormatter, add_options
from ..privacy.gate import guarded, harmless, knows
from ..privacy.mode import error_text
from ..privacy.runs import check_private_runs
from ..tasks.arguments import DownstreamArguments
from .checklists import CHECKLISTS, load_checklist, write_checklists

_TABLE_OPTIONS = (
    "image_column", "text_column", "image_root", "patient_column", "split_column", "id_column", "filter",
    "delimiter", "encoding", "missing_word", "label_column", "label_spelling", "label_separator",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.audit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    titles = " and ".join(load_checklist(name)["title"] for name in CHECKLISTS)
    checklists = commands.add_parser("checklists", help=f"drafts of {titles}, from what a run knows")
    checklists.add_argument("run", help="output folder of train_pretrain.py or train_downstream.py")
    checklists.add_argument("--to", default="checklists", help="folder of the drafts")
    table = commands.add_parser(
        "table1", help="patients, studies, images, views, sex, age and labels by split", formatter_class=OptionFormatter
    )
    table.add_argument("source", help="a table as train_downstream.py takes it, or a cache")
    table.add_argument("--to", default="table1", help="folder of table1.json and table1.md")
    table.add_argument("--min_count", type=int, default=0, help="hide counts below this, 5 for instance")
    table.add_argument("--cache", help="take the split of the table's rows from this cache")
    for name in ("sex", "age"):
        table.add_argument(f"--{name}_column", default=name)
    add_options(table, DownstreamArguments, _TABLE_OPTIONS)
    commands.add_parser("dependencies", help="direct dependencies with their licences, as installed here")
    return parser


@guarded({
    "checklists": knows("places; it takes private runs alone"),
    "table1": knows("places, and views, sexes and classes that are on no list"),
    "dependencies": harmless("what is installed"),
})  # fmt: skip
def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if arguments.command == "checklists":
            check_private_runs(arguments.run)
            print(*write_checklists(arguments.run, arguments.to), sep="\n")
        elif arguments.command == "dependencies":
            from .dependencies import dependency_table

            print(dependency_table())
        else:
            print(_table1(arguments))
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 1


def _table1(arguments: argparse.Namespace) -> str:
    from .table1 import describe_data, load_rows, markdown

    rows, labels, notes = load_rows(
        arguments.source,
        cache=arguments.cache,
        sex_column=arguments.sex_column,
        age_column=arguments.age_column,
        label_columns=arguments.label_column,
        text_column=arguments.text_column,
        image_column=arguments.image_column,
        image_root=arguments.image_root,
        missing_words=arguments.missing_word,
        sep=arguments.delimiter,
        encoding=arguments.encoding,
        label_spelling=arguments.label_spelling,
        label_separator=arguments.label_separator,
        patient_column=arguments.patient_column,
        split_column=arguments.split_column,
        id_column=arguments.id_column,
        filters=arguments.filter or None,
    )
    described = describe_data(rows, labels, min_count=arguments.min_count)
    described["notes"] += notes
    page = markdown(described, arguments.min_count)
    folder = Path(arguments.to)
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / "table1.json", json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    write_aside(folder / "table1.md", page)
    return page


if __name__ == "__main__":
    sys.exit(main())
