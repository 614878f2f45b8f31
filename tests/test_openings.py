"""Every place where the package opens a file by a name: regular files only, or a reason here."""

import ast
from pathlib import Path

import pytest

import adaptor_hf

PACKAGE = Path(adaptor_hf.__file__).parent
SAFE = {"open_regular", "check_regular", "check_all_regular"}
# What opens a file by its first argument.
OPENERS = {
    "open", "os.open", "io.open", "Path.open", "read_text", "Path.read_bytes", "Image.open", "dcmread", "read_table",
    "read_schema", "ParquetFile", "memory_map", "OSFile", "input_stream", "safe_open", "load_file", "torch.load",
    "np.load", "fromfile", "memmap", "load_workbook", "ZipFile", "tarfile.open", "load_from_disk", "from_parquet",
    "load_dataset", "ModelCard.load", "json.load", "json.loads", "yaml.load", "yaml.safe_load", "read_csv",
    "read_excel",
    "read_json_lines", "loadtxt", "genfromtxt", "is_zipfile", "is_tarfile", "get_unsafe_globals_in_checkpoint",
    "copyfile", "copy2", "shutil.copy", "pickle.load",
}  # fmt: skip
# Names of variables that hold an open file or its bytes.
OPEN = {"stream", "file", "sink", "archive", "lines"}
OURS = "a file of this package"
NEW = "writes a new file"
ALLOWED = {
    ("regular_files_adaptor.py", "os.open(path, flags"): "the one",
    ("regular_files_adaptor.py", "open(path, 'rb', opener=_without_waiting)"): "the one",
    ("regular_files_adaptor.py", "json.loads(text)"): "the one",
    ("files.py", "os.open(aside, os.O_WRONLY"): NEW,
    ("files.py", "open(aside, 'r+b')"): NEW,
    ("files.py", "open(path, 'w'"): NEW,
    ("data/convert.py", "open(aside, 'w'"): NEW,
    ("data/public_cache.py", "pa.OSFile(path, 'wb')"): NEW,
    ("data/public_cache.py", "pa.OSFile(str(aside / _DONE), 'wb')"): NEW,
    ("data/pacs/state.py", "os.open(path, os.O_WRONLY"): "looked at before, and only added to",
    ("embeddings/files.py", "open(aside, 'wb')"): NEW,
    ("prediction/writing.py", "open(aside, 'w'"): NEW,
    ("phantom/layout_pacs.py", "zipfile.ZipFile(root / 'export' / 'older studies.zip', 'w')"): NEW,
    ("privacy/keys.py", "os.open(aside, os.O_WRONLY"): NEW,
    ("training/checkpoints.py", "os.open(folder, os.O_RDONLY)"): "a folder that this run has made, for fsync",
    ("audit/run_record.py", "open('/proc/cpuinfo'"): "the system's, by its own name",
    ("audit/checklists.py", "Path(__file__).with_name(f'{name}.json').read_text"): OURS,
    ("audit/checklists.py", "json.loads(Path(__file__)"): OURS,
    ("configs/__main__.py", "path.read_text"): OURS,
    ("data/public_cache.py", "path.read_bytes()"): OURS,
    ("data/reports.py", "path.read_text"): OURS,
    ("data/reports.py", "json.loads(path.read_text"): OURS,
    ("evaluation/report.py", "PUBLISHED_FILE.read_text"): OURS,
    ("evaluation/report.py", "json.loads(PUBLISHED_FILE.read_text"): OURS,
    ("phantom/translated_reports.py", "(_FOLDER / f'{language}.json').read_text"): OURS,
    ("phantom/translated_reports.py", "json.loads((_FOLDER"): OURS,
    ("phantom/pacs_trouble.py", "pydicom.dcmread(root / paths"): "written by this run a moment before",
    ("phantom/pacs_trouble.py", "(root / paths"): "written by this run a moment before",
    ("phantom/layout_pacs.py", "(root / path).read_bytes()"): "written by this run a moment before",
    ("phantom/generate.py", "Image.open(record['image'])"): "a phantom that this process has drawn",
    ("configs/written.py", "json.loads(text"): "text of recipe_text; RecursionError is caught by who calls",
    ("configs/written.py", "yaml.load(text, Loader)"): "text of recipe_text, with a safe loader",
    ("data/dicom.py", "pydicom.dcmread(_checked(stream"): "an open file",
    ("tower_folders_adaptor.py", "open(os.path.join(aside, TOWER_FILE), 'w'"): "written into a new folder",
    ("tower_folders_adaptor.py", "open(os.path.join(folder, 'config.json'), 'w'"): "written into a new folder",
    ("data/saved_datasets.py", "datasets.load_from_disk(str(folder))"): "looked at in the lines before",
    ("embeddings/manifest.py", "json.loads(json.dumps("): "text in memory",
    ("data/public_datasets.py", "json.loads(part.info.description)"): "text in memory, which this package wrote",
    ("embeddings/keys.py", "json.loads(backend.to_str())"): "text in memory, of a tokenizer",
    ("options/choices.py", "json.loads(value"): "an option; RecursionError is caught there",
    ("data/text_files.py", "pa.input_stream(str(path)"): "looked at in the lines before",
    ("data/converted.py", "pq.read_table(path"): "looked at in the line before",
    ("data/webdataset.py", "pq.read_table(parquet"): "looked at in the line before",
    ("embeddings/importing.py", "pq.read_table(path"): "looked at in the line before",
    ("data/table_files.py", "pyarrow.parquet.read_schema(path)"): "looked at in the line before",
    ("data/table_files.py", "datasets.Dataset.from_parquet(str(path))"): "looked at in the lines before",
    ("data/table_files.py", "pyarrow.parquet.read_table(path"): "looked at in the lines before",
    ("data/table_files.py", "datasets.load_dataset(str(source))"): "an id of the Hub: nothing of this name is here",
    ("data/spreadsheets.py", "zipfile.ZipFile(path)"): "looked at by read_workbook",
    ("data/spreadsheets.py", "openpyxl.load_workbook(path"): "looked at by read_workbook",
    ("conversion.py", "load_file(path)"): "looked at in the lines before",
    ("conversion.py", "torch.load(path"): "looked at in the lines before",
    ("conversion.py", "zipfile.is_zipfile(path)"): "looked at in the lines before",
    ("conversion.py", "torch.serialization.get_unsafe_globals_in_checkpoint(path)"): "looked at in the lines before",
    ("data/delimited.py", "pyarrow.csv.read_csv(pa.BufferReader"): "bytes in memory",
}  # fmt: skip


def openings(path: Path, package: Path = PACKAGE) -> set[tuple[str, str]]:
    """Calls in a file that open a file by a name that nobody has looked at, as (file, call)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = name.rpartition(".")[2]
        if not {name, method, f"Path.{method}" if "." in name else ""} & OPENERS:
            continue
        # Methods of objects that are open, and our functions of the same names.
        if name in ("archive.open", "read_table"):
            continue
        first = ast.unparse(node.args[0]) if node.args else next((ast.unparse(k.value) for k in node.keywords), "")
        words = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        if words & SAFE or first in OPEN or first.startswith(("BytesIO(", "io.BytesIO(")):
            continue
        found.add((path.relative_to(package).as_posix(), ast.unparse(node)))
    return found


def is_allowed(file: str, call: str) -> bool:
    return any(file == there and call.startswith(start) for there, start in ALLOWED)


def test_files_are_opened_by_the_one_function_or_for_a_reason():
    found = {opening for path in PACKAGE.rglob("*.py") for opening in openings(path)}
    assert sorted(opening for opening in found if not is_allowed(*opening)) == []
    unused = [(file, start) for file, start in ALLOWED if not any(f == file and c.startswith(start) for f, c in found)]
    assert unused == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path)", "path.open('rb')", "os.open(path, os.O_RDONLY)", "Path(path).read_text()", "path.read_bytes()",
        "Image.open(path)", "pydicom.dcmread(path)", "pq.read_table(path)", "pq.ParquetFile(path)",
        "pa.memory_map(path)", "safe_open(path, framework='pt')", "load_file(path)", "torch.load(path)",
        "np.load(path)", "openpyxl.load_workbook(path)", "zipfile.ZipFile(path)", "tarfile.open(path)",
        "datasets.load_from_disk(path)", "json.loads(text)", "json.load(open(path))", "yaml.safe_load(text)",
        "pd.read_csv(path)", "np.memmap(path)",
    ],
)  # fmt: skip
def test_every_way_to_open_a_file_is_seen(tmp_path, line):
    (tmp_path / "a.py").write_text(f"def planted():\n    {line}\n", encoding="utf-8")
    assert ("a.py", line) in openings(tmp_path / "a.py", tmp_path)


@pytest.mark.parametrize(
    "line", ["open_regular(path)", "np.load(check_regular(path))", "Image.open(stream)", "read_regular(path)"]
)
def test_the_one_function_is_no_fault(tmp_path, line):
    (tmp_path / "a.py").write_text(f"def planted():\n    {line}\n", encoding="utf-8")
    assert openings(tmp_path / "a.py", tmp_path) == set()
