"""How the running program was started, for its usage line and for advice."""

from __future__ import annotations

import sys
from pathlib import Path

COMMANDS = {"train_pretrain": "adaptor-pretrain", "train_downstream": "adaptor-downstream"}


def started_as(script: str) -> str:
    """
    The command that this process runs, such as `adaptor-pretrain` or `python -m train_pretrain`.

    Args:
        script (`str`): Module of the script: `train_pretrain` or `train_downstream`.

    Returns:
        `str`: `python train_pretrain.py` where another program calls the script's functions.
    """
    if Path(sys.argv[0]).stem == COMMANDS[script]:
        return COMMANDS[script]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {script}" if spec is not None and spec.name == script else f"python {script}.py"


__all__ = ["COMMANDS", "started_as"]
