#!/usr/bin/env bash
#SBATCH --job-name=pyimgano-sweep
#SBATCH --array=0-3
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
# Each task of the array runs one shard. One that is requeued goes on where it stopped.
#   sbatch slurm-array.sh sweep.yaml runs/shards
#   pyimgano merge runs/shards/* --output-dir runs/merged
set -euo pipefail
pyimgano sweep "$1" \
    --shard "$((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT" \
    --resume "$2/$SLURM_ARRAY_TASK_ID"
