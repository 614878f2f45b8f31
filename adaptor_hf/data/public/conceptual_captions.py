"""CC3M and CC12M: Google's tables of captions and URLs with downloaded images, webdataset shards, or SLIP's lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..captions import CAPTIONS_HELP, NAME_TOKENS_HELP, choose_captions, clean_whitespace, replace_name_tokens
from ..catalog import LoadedRows, PublicDataset, Request
from ..converted import find_converted, read_converted
from ..files import find_file, read_table, require_file, row_sources
from ..lookup import likeliest_folder
from ..webdataset import find_shards, read_shards

if TYPE_CHECKING:
    import pandas as pd

_TABLES = {
    "cc3m": {
        "train": ("Train_GCC-training.tsv", "Train*GCC*raining*.tsv"),
        "validation": ("Validation_GCC-1.1.0-Validation.tsv", "Validation*GCC*.tsv"),
    },
    "cc12m": {"train": ("cc12m.tsv",)},
}
# The two tables have their columns in opposite order.
_HEADERS = {"cc3m": ("caption", "url"), "cc12m": ("url", "caption")}
_FOLDERS = {
    "train": ("", "images/", "train/", "training/", "images/train/", "images/training/"),
    "validation": ("validation/", "val/", "images/validation/", "images/val/", "images/", ""),
}
SHARD_ROWS = 10_000


def read_cc3m(request: Request) -> LoadedRows:
    """Rows of CC3M."""
    return _read(request, "cc3m")


def read_cc12m(request: Request) -> LoadedRows:
    """Rows of CC12M."""
    return _read(request, "cc12m")


def _read(request: Request, name: str) -> LoadedRows:
    if shards := find_shards(request.root):
        loaded = shard_rows(request, shards)
    elif find_converted(request.root, name):
        loaded = _read_slip(request, name)
    else:
        loaded = _read_tsv(request, name)
    loaded.rows["text"] = replace_name_tokens(loaded.rows["text"], request.options["name_tokens"])
    repeated = loaded.rows["text"].dropna().duplicated().sum()
    if repeated:
        loaded.notes.append(f"{repeated} captions are word for word those of an earlier row.")
    return loaded


def shard_rows(request: Request, shards: list[str]) -> LoadedRows:
    """The samples of webdataset shards; those in no folder named after a split are training rows."""
    read = read_shards(request.root, shards, request.num_proc)
    rows = read.rows
    rows["text"] = clean_whitespace(rows["text"])
    rows["split"] = rows["split"].fillna("train")
    notes = [f"{len(shards)} shards of webdataset."]
    return LoadedRows(rows, table_rows=read.samples, dropped=read.dropped, faults=read.faults, notes=notes)


def _read_slip(request: Request, name: str) -> LoadedRows:
    """What SLIP's cc3m.npy and cc12m.npy hold, once converted."""
    columns = ("image_id", "captions") + (("image_name",) if name == "cc12m" else ())
    rows, file = read_converted(request.root, name, columns)
    names = rows["image_name"].astype(str) if name == "cc12m" else rows["image_id"].astype(str)
    folder = likeliest_folder(request.root, list(names), _FOLDERS["train"])
    rows = rows.assign(
        image=folder + names,
        image_id=rows["image_id"].astype(str),
        text=rows["captions"],
        split="train",
        source=file + ":" + (rows.index + 1).astype(str),
    )
    total = int(rows["captions"].map(len).sum())
    rows = choose_captions(
        rows[["image", "image_id", "text", "split", "source"]], request.options["captions"], request.seed
    )
    return LoadedRows(rows, table_rows=total, notes=[f"SLIP's list {file}."])


def _read_tsv(request: Request, name: str) -> LoadedRows:
    import pandas as pd

    template, parts = request.options["image_name"], []
    if find_file(request.root, list(_TABLES[name]["train"])) is None and name == "cc12m":
        require_file(request.root, [*_TABLES[name]["train"], "*.tar", f"{name}.parquet"], "table")
    for split, patterns in _TABLES[name].items():
        if find_file(request.root, patterns) is None:
            continue
        table = read_table(
            request.root, patterns, header=_HEADERS[name], columns=("caption", "url"), sep="\t", quoting=False
        )
        _check_order(table, name)
        names = image_names(template, len(table))
        folder = likeliest_folder(request.root, names, _FOLDERS[split])
        parts.append(
            pd.DataFrame(
                {
                    "image": [folder + name for name in names],
                    "text": clean_whitespace(table["caption"]),
                    "split": split,
                    "source": row_sources(table),
                }
            )
        )
    if not parts:
        require_file(request.root, [_TABLES[name]["train"][0], "*.tar", f"{name}.parquet"], "table")
    rows = pd.concat(parts, ignore_index=True).astype(object)
    rows["image_id"] = rows["image"]
    return LoadedRows(rows, table_rows=len(rows))


def image_names(template: str, rows: int) -> list[str]:
    """
    File name of each row of a table without names.

    Raises:
        ValueError: The template has no {row}, or other fields than {row} and {shard}.
    """
    try:
        if template.format(row=1, shard=0) == template.format(row=2, shard=0):
            raise ValueError(f"image_name must tell rows apart with {{row}}, got {template!r}.")
        return [template.format(row=row, shard=row // SHARD_ROWS) for row in range(rows)]
    except (KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"image_name has the fields {{row}} and {{shard}}, got {template!r} ({error}).") from None


def _check_order(table: pd.DataFrame, name: str) -> None:
    """CC3M and CC12M have their columns in opposite order; a mirror may have turned one round."""
    urls = table["url"].str.match(r"https?://", case=False, na=False)
    if len(table) and urls.mean() < 0.9:
        row = (~urls).idxmax()
        raise ValueError(
            f"{table.attrs['file']}, row {row}: expected {' and '.join(_HEADERS[name])} without a header, but the URL "
            f"column has a URL in {urls.sum()} of {len(table)} rows only. Are the columns in the other order, or is "
            f"this the table of {'cc12m' if name == 'cc3m' else 'cc3m'}?"
        )


_OPTIONS = {"captions": "all", "name_tokens": "keep", "image_name": "{shard:05d}/{row:09d}.jpg"}
_HELP = {
    "captions": CAPTIONS_HELP + "; for SLIP's lists",
    "name_tokens": NAME_TOKENS_HELP,
    "image_name": "where a table is used: file name of an image below its folder, with {row} (from 0) and {shard} "
    f"(row // {SHARD_ROWS}); the default is how img2dataset writes files",
}
_SHARD_FILES = "00000.tar, 00000.parquet (webdataset shards of img2dataset)"
_TRAPS = (
    "Many URLs are dead: counts differ between any two copies, and image numbers cannot be compared.",
    "What img2dataset could not download stands only in the parquet beside each tar: it is counted.",
    "Compressed tars cannot be read in place.",
)

DATASETS = (
    PublicDataset(
        name="cc3m",
        title="Conceptual Captions 3M",
        tasks=("pretraining",),
        expected_files=f"""\
One of:
{_SHARD_FILES}
Train_GCC-training.tsv, Validation_GCC-1.1.0-Validation.tsv and 00000/000000000.jpg (see image_name)
cc3m.parquet (SLIP's cc3m.npy after python -m adaptor_hf.data.convert) and files named by image_id, without suffix""",
        license="Google's terms: free with attribution; images under the terms of their sites",
        homepage="https://ai.google.com/research/ConceptualCaptions",
        restricted=False,
        tested="fixture",
        read=read_cc3m,
        image_mode="RGB",
        max_fault_share=0.5,
        split_schemes=("official",),
        options=_OPTIONS,
        option_help=_HELP,
        split_notes={
            "official": "The two tables, or folders named after a split; else all rows are training rows. 3,318,333 / "
            "15,840 rows in the tables."
        },
        traps=(
            "The table has the caption first, that of CC12M the URL, both without a header: the order is checked.",
            "Captions are tokenised and lower case.",
            "About 600,000 captions occur more than once.",
            *_TRAPS,
        ),
    ),
    PublicDataset(
        name="cc12m",
        title="Conceptual 12M",
        tasks=("pretraining",),
        expected_files=f"""\
One of:
{_SHARD_FILES}
cc12m.tsv and 00000/000000000.jpg (see image_name)
cc12m.parquet (SLIP's cc12m.npy after python -m adaptor_hf.data.convert) and the files that image_name names""",
        license="Google's terms: free with attribution; images under the terms of their sites",
        homepage="https://github.com/google-research-datasets/conceptual-12m",
        restricted=False,
        tested="fixture",
        read=read_cc12m,
        image_mode="RGB",
        max_fault_share=0.5,
        split_schemes=("patient",),
        options=_OPTIONS,
        option_help=_HELP,
        split_notes={"patient": "There is no official split: by image."},
        traps=("The table has the URL first, that of CC3M the caption.", "<PERSON> stands for names.", *_TRAPS),
    ),
)

__all__ = ["DATASETS", "image_names", "read_cc3m", "read_cc12m", "shard_rows"]
