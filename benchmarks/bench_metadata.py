"""
Loading tables and reports of MIMIC-CXR's size: wall time of a first and of a second load, and the memory they take.

    python benchmarks/bench_metadata.py --folder FOLDER

Makes the tree in FOLDER, once: 377,110 images (links to a few small files), 227,835 reports, three tables. It takes
minutes and about 2 GB. Each load is a process of its own; the disk is warm.

The phantom's layout of MIMIC-CXR (`adaptor_hf/phantom/layout_mimic_cxr.py`) cannot stand in: it draws and encodes every
image, hours for so many, and loads read tables and reports alone. Here images are links, and reports a few sentences.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from measure import print_table
from PIL import Image

IMAGES, STUDIES, PATIENTS = 377_110, 227_835, 65_379
LINKS = 30_000
SENTENCES = [
    "The lungs are clear.",
    "There is no pleural effusion or pneumothorax.",
    "The cardiomediastinal silhouette is within normal limits.",
    "There is a 1.5 cm nodule in the right upper lobe, unchanged since ___.",
    "Mild bibasilar atelectasis is seen, left greater than right.",
    "The endotracheal tube ends 4.2 cm above the carina.",
    "Moderate cardiomegaly with mild pulmonary vascular congestion is similar to the prior study.",
    "No acute osseous abnormality is identified.",
]


def write_tree(root: Path) -> None:
    """Images, reports and tables in the layout of the release."""
    done = root / "made.json"
    if done.exists():
        return
    print("making the tree", file=sys.stderr)
    generator = np.random.default_rng(0)
    patients = 10_000_000 + np.sort(generator.choice(9_999_999, PATIENTS, replace=False))
    studies = 50_000_000 + generator.permutation(9_999_999)[:STUDIES]
    owner = np.sort(np.concatenate([np.arange(PATIENTS), generator.integers(0, PATIENTS, STUDIES - PATIENTS)]))
    study_of = np.sort(np.concatenate([np.arange(STUDIES), generator.integers(0, STUDIES, IMAGES - STUDIES)]))
    uids = generator.integers(0, 1 << 32, (IMAGES, 5), dtype=np.uint64)
    part = np.where(
        generator.random(PATIENTS) < 0.98, "train", np.where(generator.random(PATIENTS) < 0.4, "validate", "test")
    )
    view = np.array(["PA", "AP", "LATERAL", "LL", ""])[generator.choice(5, IMAGES, p=[0.25, 0.39, 0.22, 0.1, 0.04])]
    root.mkdir(parents=True, exist_ok=True)
    metadata, split, labels = [METADATA], ["dicom_id,study_id,subject_id,split"], [CHEXPERT]
    source = None
    for row in range(IMAGES):
        study = study_of[row]
        subject, number = patients[owner[study]], studies[study]
        dicom = "-".join(f"{word:08x}" for word in uids[row])
        folder = root / f"files/p{str(subject)[:2]}/p{subject}/s{number}"
        if row % LINKS == 0:
            source = root / f"image{row // LINKS}.jpg"
            Image.new("L", (64, 64), 60 + row // LINKS).save(source)
        folder.mkdir(parents=True, exist_ok=True)
        os.link(source, folder / f"{dicom}.jpg")
        metadata.append(
            f"{dicom},{subject},{number},CHEST (PA AND LAT),{view[row]},3056,2544,21800506,213014.531,CHEST,x,Erect"
        )
        split.append(f"{dicom},{number},{subject},{part[owner[study]]}")
    picks = generator.integers(0, len(SENTENCES), (STUDIES, 10))
    for study in range(STUDIES):
        subject, number = patients[owner[study]], studies[study]
        said = [SENTENCES[pick] for pick in picks[study]]
        findings, impression = " ".join(said[:7]).replace(". ", ".\n "), f"Study {number}. " + " ".join(said[7:])
        (root / f"files/p{str(subject)[:2]}/p{subject}/s{number}.txt").write_text(REPORT.format(findings, impression))
        labels.append(f"{subject},{number},,,,,,,,,1.0,,,,,")
    for name, lines in (("metadata", metadata), ("split", split), ("chexpert", labels)):
        text = "\n".join(lines) + "\n"
        (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(text.encode(), 6))
    done.write_text(json.dumps({"images": IMAGES}))


REPORT = (
    "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old "
    "man with cough  // eval for pneumonia\n \n COMPARISON:  ___\n \n FINDINGS: \n \n {}\n \n IMPRESSION: \n \n {}\n"
)
METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
CHEXPERT = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)


def load(root: str, cache: str, refresh: bool) -> None:
    """One load, in this process; prints what it took as JSON."""
    start = time.perf_counter()
    from adaptor_hf.data import load_public_dataset

    result = {"import s": time.perf_counter() - start}
    start, used = time.perf_counter(), time.process_time()
    parts = load_public_dataset("mimic_cxr", root, cache_dir=cache, num_proc=2, refresh=refresh)
    result |= {"load s": time.perf_counter() - start, "CPU s": time.process_time() - used}
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    result["children's CPU s"] = children.ru_utime + children.ru_stime
    result["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result["a child's peak GiB"] = children.ru_maxrss / 2**20
    print(json.dumps(result | {"rows": sum(map(len, parts.values()))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path, help="where the tree and the cache are made")
    parser.add_argument("--load", choices=("first", "second"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    root, cache = args.folder / "tree", args.folder / "cache"
    if args.load:
        load(str(root), str(cache), args.load == "first")
        return
    write_tree(root)
    rows = []
    for turn in ("first", "first", "second", "second"):
        command = [sys.executable, __file__, "--folder", str(args.folder), "--load", turn]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        rows.append([turn, *(f"{value:.2f}" for value in list(done.values())[:-1]), done["rows"]])
    from adaptor_hf.audit.run_record import processor_name

    print(f"\n### {IMAGES:,} images, {STUDIES:,} reports, 2 processes\n")
    busy = os.getloadavg()[0]
    print(f"Machine: {processor_name()}, {os.cpu_count()} CPUs, load average {busy:.1f}, {platform.system()}.\n")
    print_table(["load", *list(done)], rows)


if __name__ == "__main__":
    main()
