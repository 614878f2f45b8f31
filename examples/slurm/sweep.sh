#!/bin/bash
# Downstream evaluation as a job array: task N takes the options of line N of a file. What is finished is not repeated.
#SBATCH --job-name=adaptor-sweep
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

: "${OUT:?set OUT, the folder of all results}" "${OPTIONS:?set OPTIONS, a file with the options of a task on each line}"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
LINE=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$OPTIONS")
if [ -z "$LINE" ]; then
    echo "error: $OPTIONS has no line $SLURM_ARRAY_TASK_ID" >&2
    exit 1
fi

# Each task has a folder, and so a file that asks to go on, of its own.
FOLDER="$OUT/$SLURM_ARRAY_TASK_ID"
rm -f "$FOLDER/requeue"
# shellcheck disable=SC2086  # a line is several words
srun python train_downstream.py $LINE --output_dir "$FOLDER" &
RUN=$!
SIGNALLED=0
trap 'SIGNALLED=1; kill -USR1 "$RUN"' USR1
wait "$RUN"
STATUS=$?
if [ "$SIGNALLED" = 1 ]; then
    wait "$RUN"
    STATUS=$?
fi
# 75 and the file both say that the run has saved and can go on; launchers of several processes swallow the status.
if [ "$STATUS" = 75 ] || [ -e "$FOLDER/requeue" ]; then scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; fi
exit "$STATUS"
