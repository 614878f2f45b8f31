"""Names, ids and labels cannot steer the terminal or forge a line."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptor_hf.data.__main__ import main
from adaptor_hf.data.images import image_size, read_image
from adaptor_hf.files import printable
from adaptor_hf.options.terminal import is_one_line, without_steering

ROOT = Path(__file__).parent.parent
NAMES = ("a\x1b[2Jb", "a\nINFO forged", "a\rb", "a\u202egnp.exe", "a\x9b2Jb", "a\udcffb", "a\u2028b", "a\x07b")


@given(st.text(max_size=30))
def test_a_name_is_printed_in_one_line_of_printable_characters(text):
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
    assert without_steering(shown) == shown


def test_a_long_name_is_cut():
    assert len(printable("ab" * 5_000_000)) < 600


@pytest.mark.parametrize("name", NAMES)
def test_files_of_such_names_are_named_escaped(tmp_path, name):
    (tmp_path / f"{name}.png").write_bytes(b"no image")
    for path in (tmp_path / f"{name}.png", tmp_path / f"{name}-missing.png"):
        for read in (read_image, image_size):
            with pytest.raises((ValueError, OSError)) as raised:
                read(path)
            assert str(raised.value).isprintable()
            assert printable(path.name) in str(raised.value)


@pytest.mark.parametrize("name", [name for name in NAMES if "\n" not in name and "\u2028" not in name])
def test_what_steers_is_escaped_in_any_text(name):
    assert not is_one_line(name)
    assert is_one_line(without_steering(f"file {name}: damaged"))


def test_line_ends_and_progress_bars_pass():
    for text in ("two\nlines\n", "\ttab", "\r 50%|#####     |", "done\r\n", "\r", "\n\x1b[A", "größer ≥ 2", "日本語"):
        assert without_steering(text) == text


def test_prints_logs_warnings_and_errors_of_a_command_are_escaped(tmp_path):
    code = f"""
import logging, sys, warnings
handler = logging.StreamHandler()
logging.getLogger("older").addHandler(handler)
from adaptor_hf.options.terminal import escape_output
escape_output()
escape_output()
from tqdm import tqdm
logging.basicConfig(level=logging.INFO, format="%(message)s")
name = {NAMES[0]!r} + {NAMES[3]!r} + {NAMES[5]!r}
print("out", name)
print("err", name, file=sys.stderr)
logging.getLogger("newer").info("log %s", name)
logging.getLogger("older").warning("older %s", name)
warnings.warn(f"warned {{name}}")
for _ in tqdm(range(2), desc="bar"):
    pass
sys.exit(f"error: {{name}}")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100, check=False, cwd=ROOT)
    text = (run.stdout + run.stderr).decode("utf-8")
    shown = r"a\x1b[2Jba\u202egnp.exea\udcffb"
    for word in ("out", "err", "log", "older", "UserWarning: warned", "error:"):
        assert f"{word} {shown}" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "bar: 100%" in text
    assert run.returncode == 1


def test_a_wrapped_stream_is_otherwise_the_stream(capsys):
    from adaptor_hf.options.terminal import escape_output

    escape_output()
    assert sys.stdout.encoding
    print("plain")
    sys.stdout.flush()
    logging.getLogger("a").warning("b")
    assert capsys.readouterr().out == "plain\n"


def test_a_command_escapes_what_it_says_of_a_name(tmp_path):
    """Started as a process; who calls `main` from Python keeps the streams as they are."""
    table = tmp_path / "a\x1b[2Jb\u202e.csv"
    table.write_text("image,other\nx.png,y\n")
    command = [sys.executable, "-m", "adaptor_hf.data", "check", "--table", str(table)]
    run = subprocess.run(command, capture_output=True, timeout=100, check=False, cwd=ROOT)
    text = (run.stdout + run.stderr).decode("utf-8")
    assert run.returncode == 2
    assert r"a\x1b[2Jb\u202e.csv" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    before = sys.stdout
    main(["list"])
    assert sys.stdout is before
