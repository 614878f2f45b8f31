"""`python -m adaptor_hf.evaluation report RESULTS`, `... verify RUN` and `... card RESULTS --model FOLDER`."""

import argparse
import logging
import sys


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="tables, LoVT's CSV layout and figures from result files")
    report.add_argument("results", help="folder with runs, or a results.jsonl")
    report.add_argument("--output_dir", default="report", help="folder of the report")
    report.add_argument("--no_figures", action="store_true", help="tables only; no matplotlib needed")
    verify = commands.add_parser("verify", help="compute every number again from the predictions")
    verify.add_argument("run", help="folder of a run, or of many")
    card = commands.add_parser("card", help="put a model's results into the metadata of its card")
    card.add_argument("results", help="folder with runs, or a results.jsonl")
    card.add_argument("--model", required=True, help="folder of the checkpoint that was evaluated")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 1 on an error, a difference or a damaged result line."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if arguments.command == "report":
            from .report import write_report

            pages = write_report(arguments.results, arguments.output_dir, figures=not arguments.no_figures)
            print(*(page for page in pages if page.suffix == ".md" and page.parent.name != "tables"), sep="\n")
            return 0
        if arguments.command == "card":
            from .card import add_results_to_card

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
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
