#!/bin/bash
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=16
# sbatch slurm.sh FOLDER_OR_MANIFEST OUT [OPTIONS OF embed-audio]
# A table for each task, embeddings-0-of-8.parquet.
# A task that was killed goes on when the same array is submitted again.
set -euo pipefail
embed-audio "$1" --out "$2" --format parquet --dtype float16 \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "${@:3}"
