#!/usr/bin/env bash
#SBATCH --job-name=eval_gfsam
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x_%A_%a.txt
# Evaluates GF-SAM, which is not trained, on each fold of COCO-20i into RUNS/gfsam_foldN_evaluation. Options are passed to
# launch/evaluate.py. Needs DINO_WEIGHTS and SAM_WEIGHTS of env.sh.
#     sbatch slurm/eval_gfsam.sh --eval.protocol gfsam
source slurm/common.sh

complete "$RUNS/gfsam_fold${FOLD}_evaluation" launch/evaluate.py --method gfsam --episodes.fold "$FOLD" \
    ${COCO_VAL_SHARDS:+--data.shards "$COCO_VAL_SHARDS" --episodes.scheme coco} \
    ${DINO_WEIGHTS:+--method.dino_weights "$DINO_WEIGHTS"} ${SAM_WEIGHTS:+--method.sam_weights "$SAM_WEIGHTS"} "$@"
