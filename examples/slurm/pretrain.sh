#!/bin/bash
# Pre-training on one node with two GPUs, one task for each; --nodes=N on sbatch's command line takes N such nodes.
# Two minutes before the time limit it saves, puts itself back into the queue, and goes on when it is started again.
#SBATCH --job-name=adaptor
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

: "${OUT:?set OUT, the output folder, on storage that all nodes see}"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node need ports of their own.
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) WORLD_SIZE="$SLURM_NTASKS"

RESUME=()
if compgen -G "$OUT/checkpoint-*" > /dev/null; then RESUME=(--resume_from_checkpoint True); fi
rm -f "$OUT/requeue"
# shellcheck disable=SC2016  # srun sets these for each task
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python train_pretrain.py "$@"' task \
    "$@" --output_dir "$OUT" "${RESUME[@]}" &
RUN=$!
SIGNALLED=0
trap 'SIGNALLED=1; kill -USR1 "$RUN"' USR1 # srun passes it on to its tasks
wait "$RUN"
STATUS=$?
if [ "$SIGNALLED" = 1 ]; then # the signal ended the first wait, not the run
    wait "$RUN"
    STATUS=$?
fi
# 75 and the file both say that the run has saved and can go on; launchers of several processes swallow the status.
if [ "$STATUS" = 75 ] || [ -e "$OUT/requeue" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$STATUS"
