"""`python -m adaptor_hf.evaluation COMMAND RESULTS`: report, verify, subgroups, studies and card."""

import argparse
import logging
import sys

from ..privacy.gate import guarded, knows
from ..privacy.mode import error_text
from ..privacy.runs import check_private_runs
from .subgroups import AGGREGATES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="tables, LoVT's CSV layout and figures from result files")
    report.add_argument("results", help="folder with runs, or a results.jsonl")
    report.add_argument("--output_dir", default="report", help="folder of the report")
    report.add_argument("--no_figures", action="store_true", help="tables only; no matplotlib needed")
    report.add_argument(
        "--metrics", nargs="+", default=[], help="of the LaTeX tables; default: a task's headline metrics"
    )
    verify = commands.add_parser("verify", help="compute every number again from the predictions")
    verify.add_argument("run", help="folder of a run, or of many")
    subgroups = commands.add_parser("subgroups", help="AUROC by sex, age band, view or any column, and the gaps")
    subgroups.add_argument("results", help="folder with runs, or a results.jsonl")
    subgroups.add_argument("--column", nargs="+", default=[], help="of the predictions; default: all that make groups")
    studies = commands.add_parser("studies", help="metrics by study: the scores of its images as one")
    studies.add_argument("results", help="folder with runs, or a results.jsonl")
    studies.add_argument("--how", choices=AGGREGATES, default=AGGREGATES[0], help="of the scores of a study's images")
    card = commands.add_parser("card", help="put a model's results into the metadata of its card")
    card.add_argument("results", help="folder with runs, or a results.jsonl")
    card.add_argument("--model", required=True, help="folder of the checkpoint that was evaluated")
    return parser


def _tables(arguments: argparse.Namespace) -> list[str]:
    """Markdown of what `subgroups` and `studies` print; phantoms say what they are."""
    from .groups import study_lines, subgroup_tables
    from .report import PHANTOM, is_phantom, metric_tables
    from .results import read_sound_results
    from .tables import aggregate

    lines = read_sound_results(arguments.results).lines
    said = []
    for phantom in (False, True):
        chosen = [line for line in lines if is_phantom(line["dataset"]) == phantom]
        if not chosen:
            continue
        if arguments.command == "subgroups":
            tables = subgroup_tables(chosen, arguments.column)
        else:
            tables = metric_tables(aggregate(study_lines(chosen, how=arguments.how)))
            for table in tables:
                table.title += f", by study ({arguments.how} of its images' scores)"
                table.columns = [name.replace("images (", "studies (") for name in table.columns]
        said += [PHANTOM + "\n"] * phantom + [table.markdown() for table in tables]
    return said or ["No run has groups: predictions need a column such as sex, age or view."]


@guarded({
    "report": knows("places; it takes results of private runs alone"),
    "verify": knows("places, and what other libraries say of damage"),
    "subgroups": knows("places; it takes results of private runs alone"),
    "studies": knows("places; it takes results of private runs alone"),
    "card": knows("places; it takes results of private runs alone"),
})  # fmt: skip
def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 1 on an error, a difference or a damaged result line."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if arguments.command != "verify":
            check_private_runs(arguments.results)
        if arguments.command == "report":
            from .report import write_report

            pages = write_report(
                arguments.results, arguments.output_dir, figures=not arguments.no_figures, metrics=arguments.metrics
            )
            print(*(page for page in pages if page.suffix == ".md" and page.parent.name != "tables"), sep="\n")
            return 0
        if arguments.command in ("subgroups", "studies"):
            print(*_tables(arguments), sep="\n")
            return 0
        if arguments.command == "card":
            from ..hub.results_card import add_results_to_card

            path, count = add_results_to_card(arguments.model, arguments.results)
            print(f"{path}: {count} results")
            return 0
        from .verify import verify_tree

        found = verify_tree(arguments.run)
        for folder, differences in found.items():
            print(f"{folder}: " + ("verified" if not differences else f"{len(differences)} differences"))
            for difference in differences:
                print(f"  {difference}")
        return 1 if any(found.values()) else 0
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
