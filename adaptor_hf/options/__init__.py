"""Options of the scripts: how one is declared, how the command line and a recipe become dataclasses, and `--help`."""
