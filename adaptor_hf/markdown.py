"""
Names in Markdown: what users call files, data sets, classes and towers stays text in every page that is written.

By the rules of CommonMark and of GitHub's additions. Only what would be read as markup gets a backslash, so that
ordinary names and intervals in brackets look the same in the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Joiners of Persian, Indian scripts and emoji; other invisible characters are written as escapes.
_JOINERS = "\u200c\u200d"
_HARMFUL = re.compile(
    r"""\\(?=[!-/:-@\[-`{-~]|$)       # a backslash that would escape something
    |<(?=[A-Za-z/!?])                 # HTML and <http://...>
    |&(?=\#?\w+;)                     # entities
    |\](?=[(\[:])                     # links, references and their definitions
    |!(?=\[)                          # images
    |~                                # strikethrough
    |(?<=:)/(?=/)                     # http://... without brackets is a link on GitHub
    |(?<=\b[wW]{3})\.
    |(?<=\bmailto):|(?<=\bxmpp):
    |(?<=[\w.+-])@(?=[\w-]+\.\w)      # an address of e-mail
    """,
    re.VERBOSE,
)
_MARKUP = re.compile(r"[|`*]|(?<![^\W_])_|_(?![^\W_])")
_NUMBERED = re.compile(r"\d{1,9}(?=[.)](\s|$))")
_BLOCK = re.compile(r"[#>+=-]|\*\s|\[[ xX^]|~~~|```|_{3}|\*{3}")


def one_line(text: object) -> str:
    """Without line ends; control and other invisible characters are written as escapes, such as `\\x1b`."""
    words = " ".join(str(text).split())
    return "".join(one if one.isprintable() or one in _JOINERS else ascii(one)[1:-1] for one in words)


def sentence(text: object) -> str:
    """
    A sentence of ours with names in it, for a paragraph or a list: our `code` and *emphasis* stay, and no name in it
    becomes a link, an image, HTML or a block of its own.
    """
    return _as_text(_HARMFUL.sub(r"\\\g<0>", one_line(text)))


def plain(text: object) -> str:
    """A name, for a heading, a cell or inside a sentence: shown as it is, whatever it holds."""
    return _as_text(_cell(text))


def _cell(text: object) -> str:
    return _MARKUP.sub(r"\\\g<0>", _HARMFUL.sub(r"\\\g<0>", one_line(text)))


def _as_text(escaped: str) -> str:
    """What would begin a heading, a list or another block does not."""
    if match := _NUMBERED.match(escaped):
        return f"{match[0]}\\{escaped[match.end() :]}"
    return f"\\{escaped}" if _BLOCK.match(escaped) else escaped


def table_row(cells: Iterable[object]) -> str:
    """A row of a table; each cell is shown as it is."""
    return "| " + " | ".join(map(_cell, cells)) + " |"


def table_rule(columns: int) -> str:
    """The line below a table's names."""
    return "|" + "---|" * columns


__all__ = ["one_line", "plain", "sentence", "table_row", "table_rule"]
