"""All commands of the package, found by looking, and data with canaries in every place that they read."""

import argparse
import ast
import csv
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import adaptor_hf
from adaptor_hf.options.parser import OptionParser

PACKAGE = Path(adaptor_hf.__file__).parent
ROOT = PACKAGE.parent
CANARY = "CaNaRy"
SCRIPTS = ("train_pretrain", "train_downstream")


class _StartError(BaseException):
    pass


def entry_modules(package: Path = PACKAGE, project: Path = ROOT / "pyproject.toml") -> list[str]:
    """Modules that are commands: those of the package that run when they are started, and the project's scripts."""
    found = []
    for path in sorted(package.rglob("*.py")):
        starts = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        ]
        if starts or path.name == "__main__.py":
            found.append(".".join(path.relative_to(package.parent).with_suffix("").parts))
    scripts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["scripts"].values()
    return found + sorted({script.partition(":")[0] for script in scripts} - set(found))


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a command's `main` makes."""

    def stop(parser, *arguments, **more):
        raise _StartError(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(OptionParser, "parse", stop)
        patch.delenv("ADAPTOR_PRIVATE", raising=False)
        with pytest.raises(_StartError) as started:
            import_module(module).main([])
    return started.value.args[0]


@dataclass
class Command:
    """A command or subcommand."""

    module: str
    name: str | None
    parser: argparse.ArgumentParser
    declared: object

    @property
    def title(self) -> str:
        return " ".join(filter(None, (self.module.removeprefix("adaptor_hf.").removesuffix(".__main__"), self.name)))

    @property
    def main(self) -> Callable:
        return import_module(self.module).main

    def words(self, *words: str) -> list[str]:
        return [*([self.name] if self.name else []), *words]


def commands() -> list[Command]:
    found = []
    for module in entry_modules():
        parser, declared = parser_of(module), import_module(module).main.declared
        inner = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if inner:
            assert declared.keys() == inner[0].keys(), module
            found += [Command(module, name, one, declared[name]) for name, one in inner[0].items()]
        else:
            found.append(Command(module, None, parser, declared))
    return found


def said_by(command: Command, words: Sequence[str], capfd: pytest.CaptureFixture) -> str:
    """What a command says that is run as its process would run it; private mode is off again afterwards."""
    from adaptor_hf.privacy import mode
    from adaptor_hf.training.interruption import run_script

    capfd.readouterr()
    try:
        if command.title in SCRIPTS:
            run_script(lambda: command.main(list(words)))
        else:
            command.main(command.words(*words))
    except SystemExit as stop:
        # As the interpreter does.
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        mode._set_key(None)
        mode.stop_filter()
        said = capfd.readouterr()
    return said.out + said.err


def no_canary(said: str, folder: Path | None = None, but: tuple[str, ...] = ()) -> None:
    """Fail where a canary is in what was said, or in a file of a folder whose name is not in `but`."""
    assert CANARY.lower() not in said.lower(), said
    for path in folder.rglob("*") if folder else ():
        if path.is_file() and path.name not in but:
            assert CANARY.lower().encode() not in path.read_bytes().lower(), path


def plant_table(folder: Path, header: bool = True, rows: int = 24) -> Path:
    """A table of images and reports, with canaries in names of folders, files and columns, ids, texts and labels."""
    folder = folder / f"ward {CANARY}"
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    lines = []
    for row in range(rows):
        name = f"{CANARY}-{row:03d}.png"
        Image.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / name)
        lines.append({
            "image": name, "patient_id": f"{CANARY}{row // 2}", "study_id": f"{CANARY}study{row}",
            "text": f"{CANARY} was seen, effusion {row}", "view": f"{CANARY} PA" if row % 3 else "PA",
            "sex": ("F", f"{CANARY}")[row % 2], "age": 30 + row, "effusion": row % 2,
            "diagnosis": ("pneumonia", "edema", f"{CANARY} 1931")[row % 3], f"{CANARY}column": f"{CANARY}cell",
        })  # fmt: skip
    path = folder / f"{CANARY}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0])
        if header:
            writer.writeheader()
        writer.writerows(lines)
    return path


def plant_export(folder: Path, count: int = 6) -> tuple[Path, Path]:
    """A PACS export with canaries in every text of its headers, and its table of reports."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    root = folder / f"export {CANARY}" / f"{CANARY}^JANE"
    root.mkdir(parents=True)
    keys = []
    for number in range(count):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        one = pydicom.Dataset()
        one.file_meta = meta
        one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID = f"1.2.4.{number}"
        one.Modality = ("DX", "DX", "DX", "DX", CANARY.upper(), "DX")[number]
        one.PatientID, one.PatientName, one.PatientBirthDate = f"{CANARY}{number}", f"{CANARY}^JANE", "19310217"
        one.AccessionNumber = f"{CANARY}{number}"
        one.ViewPosition = ("PA", f"{CANARY} 1".upper(), "AP", "LL", "PA", "PA")[number]
        one.BodyPartExamined = ("CHEST", f"{CANARY} 2".upper())[number % 2]
        one.ImageType = ["ORIGINAL", "PRIMARY", f"{CANARY}".upper()]
        one.PatientSex, one.PatientAge = ("F", CANARY.upper())[number % 2], "045Y"
        one.SeriesDescription = one.ProtocolName = f"{CANARY} protocol"
        one.BurnedInAnnotation = ("NO", CANARY.upper())[number % 2]
        one.PresentationIntentType = ("FOR PRESENTATION", CANARY.upper())[number % 2]
        one.Rows = one.Columns = 8
        one.SamplesPerPixel, one.BitsAllocated, one.BitsStored, one.HighBit = 1, 8, 8, 7
        one.PixelRepresentation = 0
        one.PhotometricInterpretation = "MONOCHROME2" if number < 5 else CANARY.upper()
        one.PixelData = bytes(64)
        one.save_as(root / f"{CANARY}{number}", enforce_file_format=True)
        keys.append(f"{CANARY}{number}")
    (root / f"{CANARY}.txt").write_text(CANARY)
    reports = folder / f"{CANARY} reports.csv"
    reports.write_text(
        "AccessionNumber,text\n" + "".join(f"{key},{CANARY} was seen {key}\n" for key in keys), encoding="utf-8"
    )
    return root.parent, reports


def column(table: Path, place: int) -> str:
    """Name of a column of a table, counted from 0; without header line a cell of its first row."""
    with open(table, newline="", encoding="utf-8") as file:
        return next(csv.reader(file))[place]
