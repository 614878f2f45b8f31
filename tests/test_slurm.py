"""The job scripts of examples/slurm, with stand-ins for srun and scontrol and two processes on the CPU."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from script_runs import LIMIT, OPTIONS, ROOT, kill_group, start, steps, wait_for
from synthetic import synthetic_cache

SCRIPTS = sorted((ROOT / "examples" / "slurm").glob("*.sh"))
SRUN = """#!/bin/bash
# Starts the tasks, passes USR1 on to them and returns the highest status, as srun does.
TASKS=()
for (( RANK = 0; RANK < ${SLURM_NTASKS:-1}; RANK++ )); do
    SLURM_PROCID=$RANK SLURM_LOCALID=$RANK "$@" &
    TASKS+=($!)
done
trap 'kill -USR1 "${TASKS[@]}" 2> /dev/null' USR1
HIGHEST=0
for TASK in "${TASKS[@]}"; do
    wait "$TASK"; STATUS=$?
    while kill -0 "$TASK" 2> /dev/null; do wait "$TASK"; STATUS=$?; done
    # The status of a task that ended during an interrupted wait.
    if [ "$STATUS" -gt 128 ]; then wait "$TASK"; STATUS=$?; fi
    if [ "$STATUS" -gt "$HIGHEST" ]; then HIGHEST=$STATUS; fi
done
exit "$HIGHEST"
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo 127.0.0.1; echo other; else echo "$@" >> "$SCONTROL_LOG"; fi
"""


@pytest.fixture
def cluster(tmp_path):
    """Variables of a job, and the file where scontrol writes what it was asked."""
    programs = tmp_path / "bin"
    programs.mkdir()
    python = f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    log = tmp_path / "scontrol.log"
    variables = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "SCONTROL_LOG": str(log)}
    variables |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "OUT": str(tmp_path / "out")}
    return variables, log


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_scripts_are_sound_bash_and_ask_to_be_requeued(script):
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert {"requeue", "open-mode", "time"} <= options.keys()
    assert options["signal"] == "B:USR1@120"
    # SLURM reads options only before the first command.
    assert text.rindex("#SBATCH") < re.search(r"^[^#\s]", text, re.MULTILINE).start()
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(script)], check=False).returncode == 0


@pytest.mark.slow
def test_a_warned_job_saves_is_requeued_and_goes_on_to_the_end(cluster, tmp_path):
    variables, log = cluster
    synthetic_cache(tmp_path / "cache")
    options = OPTIONS | {"cache": tmp_path / "cache", "num_train_epochs": 12, "save_steps": 4, "eval_steps": 4}
    words = ["bash", str(SCRIPTS[0]), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    variables |= {"SLURM_NTASKS": "2"}
    out, output = Path(variables["OUT"]), tmp_path / "job.log"
    job = start([*words, "--use_cpu", "True"], output, **variables)
    try:
        wait_for(lambda: len(steps(out)) > 0, job, "a first checkpoint")
        job.send_signal(signal.SIGUSR1)
        assert job.wait(LIMIT) == 75, output.read_text()
    finally:
        kill_group(job)
    assert log.read_text() == f"requeue {variables['SLURM_JOB_ID']}\n"
    assert "Stopped by SIGUSR1" in output.read_text()
    before = max(steps(out))
    assert before < 12 * 8
    job = start([*words, "--use_cpu", "True"], output, **variables)
    assert job.wait(LIMIT) == 0, output.read_text()
    assert max(steps(out)) > before
    assert (out / "run.json").is_file()
    assert len(log.read_text().splitlines()) == 1, "a finished job is not requeued"


def test_a_task_of_the_array_takes_its_line_and_its_folder(cluster, tmp_path):
    variables, log = cluster
    # The script is what is tested here, so python only says what it was asked.
    python = '#!/bin/bash\necho "$@"\nmkdir -p "${@: -1}"\n[ -z "$FAKE_SAVED" ] || touch "${@: -1}/requeue"\n'
    (tmp_path / "bin" / "python").write_text(python + 'exit "$FAKE_STATUS"\n')
    (tmp_path / "sweep.txt").write_text("--task retrieval --model one\n--task zero_shot --model two\n")
    variables |= {"OPTIONS": str(tmp_path / "sweep.txt"), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}

    def run(**more):
        return subprocess.run(
            ["bash", str(SCRIPTS[1])], env=os.environ | variables | more, capture_output=True, text=True, check=False
        )

    finished = run(FAKE_STATUS="0")
    assert finished.returncode == 0
    assert finished.stdout.split() == [
        *("train_downstream.py", "--task", "zero_shot", "--model", "two", "--output_dir", f"{variables['OUT']}/2")
    ]
    assert run(FAKE_STATUS="1").returncode == 1
    assert not log.exists()
    # What counts is that the run has saved, whatever a launcher makes of its status.
    assert run(FAKE_STATUS="1", FAKE_SAVED="yes").returncode == 1
    assert log.read_text() == "requeue 7_2\n"
    assert run(FAKE_STATUS="1").returncode == 1
    assert log.read_text() == "requeue 7_2\n", "the file of the time before is gone"
    assert run(FAKE_STATUS="75").returncode == 75
    assert log.read_text() == "requeue 7_2\n" * 2
    beyond = run(FAKE_STATUS="0", SLURM_ARRAY_TASK_ID="3")
    assert (beyond.returncode, beyond.stderr) == (1, f"error: {tmp_path}/sweep.txt has no line 3\n")
