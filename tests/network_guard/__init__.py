"""Starts the guard of `sitecustomize.py` in this process and in all that it starts. Imported by conftest."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
LOG = Path(tempfile.mkdtemp(prefix="adaptor-hf-network-")) / "attempts"
atexit.register(shutil.rmtree, LOG.parent, ignore_errors=True)
os.environ["ADAPTOR_TEST_NETWORK_LOG"] = str(LOG)
# A proxy on this machine would carry connections past the guard.
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]

# xdist's workers inherit PYTHONPATH and have the guard since their start.
paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(FOLDER) not in paths:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *filter(None, paths)])
    from . import sitecustomize  # noqa: F401


def attempts() -> list[str]:
    """Lines that the guard has written since the last call."""
    lines = LOG.read_text(encoding="utf-8").splitlines() if LOG.exists() else []
    LOG.unlink(missing_ok=True)
    return lines
