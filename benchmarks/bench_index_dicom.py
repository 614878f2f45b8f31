"""
Indexing a PACS export: headers a second with one and two workers, and the time of a second call that has it all.

    python benchmarks/bench_index_dicom.py
    python benchmarks/bench_index_dicom.py --headers 100000 --folder FOLDER

Makes a tree of DICOM files without endings (headers of a radiography system, 8 KiB of pixels each) and a table of
reports, in FOLDER or a temporary one. Each call is a process of its own; the disk is warm.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import print_table

PER_STUDY, PER_FOLDER = 2, 1000


def write_tree(root: Path, count: int) -> None:
    """`count` files made of one, with ids of their own; two of each study."""
    done = root / "made.json"
    if done.exists() and json.loads(done.read_text())["headers"] == count:
        return
    print(f"making {count:,} files", file=sys.stderr)
    from io import BytesIO

    from adaptor_hf.phantom.generate import plan
    from adaptor_hf.phantom.layout_pacs import dicom_object

    planned = next(plan(1, 64, 0))
    dataset = dicom_object(planned, planned.record(64, 0), 0)
    ids = {"SOPInstanceUID": "1.2.826.0.1.9{:010d}", "StudyInstanceUID": "1.2.826.0.1.8{:010d}"}
    ids |= {"AccessionNumber": "RX{:010d}", "PatientID": "{:010d}"}
    marks = {}
    for place, (keyword, form) in enumerate(ids.items()):
        marks[form] = form.format(9_999_999_990 + place)
        setattr(dataset, keyword, marks[form])
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    data = stream.getvalue()
    shutil.rmtree(root, ignore_errors=True)
    lines = ["AccessionNumber,text"]
    for number in range(count):
        content = data
        for place, (form, mark) in enumerate(marks.items()):
            value = form.format(number if place == 0 else number // PER_STUDY)
            content = content.replace(mark.encode(), value.encode())
        folder = root / "export" / f"{number // PER_FOLDER:05d}"
        if number % PER_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"{number % PER_FOLDER}").write_bytes(content)
        if number % PER_STUDY == 0:
            lines.append(f"RX{number // PER_STUDY:010d},The lungs are clear. Study {number}.")
    (root / "ris.csv").write_text("\n".join(lines) + "\n")
    done.write_text(json.dumps({"headers": count}))


def index(root: Path, to: Path, workers: int) -> None:
    """One call, in this process; prints what it took as JSON."""
    from adaptor_hf.data import index_dicom

    start = time.perf_counter()
    found = index_dicom(root / "export", root / "ris.csv", to=to, num_proc=workers)
    wall = time.perf_counter() - start
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    used = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    print(json.dumps({"rows": len(found.table), "wall": wall, "cpu": used, "peak": own.ru_maxrss / 2**20}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headers", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where the tree is made and kept; default: a temporary folder")
    parser.add_argument("--call", nargs=2, metavar=("TO", "WORKERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        index(args.folder, Path(args.call[0]), int(args.call[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = (args.folder or Path(temporary)) / "tree"
        write_tree(root, args.headers)
        rows = []
        for name, to, workers in (("first", "one", 1), ("first", "two", 2), ("second", "two", 2)):
            to = Path(temporary) / to
            words = [sys.executable, __file__, "--folder", str(root), "--call", str(to), str(workers)]
            done = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
            speed = f"{args.headers / done['wall']:,.0f}"
            rows.append([name, workers, f"{done['wall']:.1f}", f"{done['cpu']:.1f}", speed, f"{done['peak']:.2f}",
                         done["rows"]])  # fmt: skip
    print(f"\n### {args.headers:,} headers\n")
    from adaptor_hf.audit.run_record import processor_name

    busy = os.getloadavg()[0]
    print(f"Machine: {processor_name()}, {os.cpu_count()} CPUs, load average {busy:.1f}, {platform.system()}.\n")
    print_table(["call", "workers", "wall s", "CPU s", "headers/s", "peak GiB", "rows"], rows)


if __name__ == "__main__":
    main()
