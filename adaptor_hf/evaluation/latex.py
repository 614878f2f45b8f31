r"""
Tables in LaTeX that fit a page: at most 12 cm wide and as high as a page of A4 or letter paper; what is larger goes
on in further tables. They need `\usepackage{array,booktabs}`, and pdfLaTeX, XeLaTeX or LuaLaTeX with UTF-8.
"""

from __future__ import annotations

import math
import re

from .naming import metric_title
from .tables import Table

WIDTH_CM = 12.0
_POINTS_PER_CM = 28.45
_SMALL, _FOOTNOTE = 9.0, 8.0  # font sizes, in points, of a document in 10 point
_GAP = 6.0  # twice \tabcolsep
_LABEL_POINTS = 84.0  # the least that names of rows get
_WIDEST = 130.0  # a value; sentences are broken
_LINES = 46  # of \small on a page, caption and notes included
_MAX_NOTES = 14
_LONG_WORD = 14

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " "}
_SPECIAL |= {"±": r"$\pm$", "†": r"$\dagger$", "→": r"$\to$", "−": "$-$", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''"}
# After the end of a row a bracket would be an option.
_SPECIAL |= {"[": "{[}", "]": "{]}"} | {c: "\\" + c for c in "&%$#_{}"}
_INTERVAL = re.compile(r"^(?P<value>[^\[]+?) (?P<interval>\[[^\]]*\])(?P<mark>( †)?)$")


def latex_table(table: Table) -> str:
    """
    One table, or several of the same name in order where one would not fit a page.

    Args:
        table ([`Table`]): Values read `0.812 ± 0.010 [0.775, 0.850] †`: the interval gets a line of its own.
    """
    names = table.short or [row[0] for row in table.rows]
    shown = table.headline if table.headline is not None else list(range(1, len(table.columns)))
    notes = table.latex_notes if table.latex_notes is not None else table.notes
    if len(notes) > _MAX_NOTES:
        notes = [*notes[:_MAX_NOTES], f"{len(notes) - _MAX_NOTES} more notes: see the table in Markdown."]
    widths = {column: _column_points(table, column) for column in shown}
    panels = []
    for columns in _panels(shown, widths):
        label_points = WIDTH_CM * _POINTS_PER_CM - sum(widths[column] + _GAP for column in columns)
        rows = [row for row in range(len(table.rows)) if any(table.rows[row][column] for column in columns)]
        note_lines = sum(math.ceil(_points(note, _FOOTNOTE) / (WIDTH_CM * _POINTS_PER_CM)) for note in notes)
        for chunk in _chunks(rows, [_lines(table, names, row, columns, widths, label_points) for row in rows],
                             max(8, _LINES - 4 - note_lines), table.parts):  # fmt: skip
            panels.append((columns, chunk, label_points))
    made = [
        _panel(table, names, *panel, widths, notes, number, len(panels)) for number, panel in enumerate(panels, start=1)
    ]
    return "\n".join(made)


def escape(text: str) -> str:
    """Plain text as LaTeX; long words may be broken at their signs."""
    return "".join(_escape_word(word) for word in re.split(r"(\s+)", text))


def _escape_word(word: str) -> str:
    if len(word) <= _LONG_WORD:
        return "".join(_SPECIAL.get(c, c) for c in word)
    parts, run = [], 0
    for character in word:
        parts.append(_SPECIAL.get(character, character))
        run += 1
        if character in "_-+/.,:@=" or run == _LONG_WORD:
            parts.append(r"\allowbreak{}")
            run = 0
    return "".join(parts)


def _panels(columns: list[int], widths: dict[int, float]) -> list[list[int]]:
    """As few panels as fit the width, of about equal numbers of columns."""
    left = WIDTH_CM * _POINTS_PER_CM - _LABEL_POINTS
    for count in range(1, len(columns) + 1):
        size = math.ceil(len(columns) / count)
        found = [columns[start : start + size] for start in range(0, len(columns), size)]
        if all(sum(widths[column] + _GAP for column in part) <= left for part in found):
            return found
    return [[column] for column in columns]


def _chunks(rows: list[int], lines: list[int], limit: int, parts: list[str] | None) -> list[list[int]]:
    """Rows for each page; a part goes to the next page whole, where it fits one."""
    groups: list[list[tuple[int, int]]] = []
    for row, needed in zip(rows, lines, strict=True):
        if parts is None or not groups or parts[row] != parts[groups[-1][-1][0]]:
            groups.append([])
        groups[-1].append((row, needed))
    found: list[list[int]] = [[]]
    used = 0
    for group in groups:
        # Beside the rows of a part, its heading and the space before it.
        extra = 2 if parts else 0
        if found[-1] and used + extra + sum(needed for _, needed in group) > limit:
            found.append([])
            used = 0
        used += extra
        for row, needed in group:
            if found[-1] and used + needed > limit:
                found.append([])
                used = extra
            found[-1].append(row)
            used += needed
    return found


def _panel(table, names, columns, rows, label_points, widths, notes, number, count) -> str:
    part = f" (part {number} of {count})" if count > 1 else ""
    suffix = f"-{number}" if number > 1 else ""
    name = re.sub(r"[^A-Za-z0-9-]+", "-", table.name).strip("-")
    spec = "".join(
        rf">{{\raggedright\arraybackslash}}p{{{points / _POINTS_PER_CM:.2f}cm}}"
        for points in (label_points, *(widths[column] for column in columns))
    )
    body, heading = [], None
    for row in rows:
        if table.parts and table.parts[row] != heading:
            heading = table.parts[row]
            if heading:
                body += [r"\addlinespace"] * bool(body)
                body.append(rf"\multicolumn{{{len(columns) + 1}}}{{@{{}}l@{{}}}}{{\textit{{{escape(heading)}}}}} \\")
            else:
                body.append(r"\midrule")
        cells = [_cell(table.rows[row][column], (row, column) in table.bold) for column in columns]
        body.append(" & ".join([escape(names[row]), *cells]) + r" \\")
    head = " & ".join(["", *(escape(_head(table, column)) for column in columns)]) + r" \\"
    return "\n".join(
        [
            "% \\usepackage{array,booktabs}",
            r"\begin{table}[tbp]",
            r"\centering",
            rf"\caption{{{escape(table.title)}{part}}}",
            rf"\label{{tab:{name}{suffix}}}",
            rf"\begin{{minipage}}{{{WIDTH_CM:g}cm}}",
            r"\small\setlength{\tabcolsep}{3pt}",
            rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *([r"\par\smallskip\footnotesize\raggedright"] if notes else []),
            *(rf"{escape(note)}\par" for note in notes),
            r"\end{minipage}",
            r"\end{table}",
            "",
        ]
    )


def _head(table: Table, column: int) -> str:
    """Of a table of metrics, their names in words."""
    return metric_title(table.columns[column]) if table.headline is not None else table.columns[column]


def _cell(text: str, bold: bool) -> str:
    lines = [escape(line).replace(r"\allowbreak{}", "") for line in _cell_lines(text)]
    lines = [rf"\textbf{{{line}}}" if bold else line for line in lines if line]
    if len(lines) < 2:
        return "".join(lines)
    return rf"{lines[0]}\newline{{\footnotesize {lines[1]}}}"


def _cell_lines(text: str) -> list[str]:
    found = _INTERVAL.match(text)
    return [found["value"] + found["mark"], found["interval"]] if found else [text]


def _lines(table: Table, names: list[str], row: int, columns: list[int], widths: dict, label_points: float) -> int:
    found = [_wrapped(names[row], label_points)]
    for column in columns:
        found.append(sum(_wrapped(line, widths[column]) for line in _cell_lines(table.rows[row][column])))
    return max(found)


def _wrapped(text: str, points: float) -> int:
    """Lines that a text needs in a column; of long texts a tenth is lost at their ends."""
    width = _points(text, _SMALL)
    return 1 if width <= points else math.ceil(1.1 * width / points)


def _column_points(table: Table, column: int) -> float:
    """Width of a column for its longest line in bold; headings and sentences are broken between words."""
    words = [_points(word, _SMALL) for word in _head(table, column).split() if len(word) <= _LONG_WORD]
    cells = [
        _points(line, size, 1.16)
        for row in table.rows
        for line, size in zip(_cell_lines(row[column]), (_SMALL, _FOOTNOTE), strict=False)
    ]
    return min(max(24.0, *words, *cells) + 3, _WIDEST)


def _points(text: str, size: float, factor: float = 1.0) -> float:
    """About the width of a text in Computer Modern, in points."""
    narrow = sum(character in " .,:;'|[]()il1!/-" and not character.isdigit() for character in text)
    wide = sum(character in "mwMW±@%" or character.isupper() for character in text)
    return factor * size * (0.33 * narrow + 0.80 * wide + 0.51 * (len(text) - narrow - wide))


__all__ = ["WIDTH_CM", "escape", "latex_table"]
