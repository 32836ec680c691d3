#!/usr/bin/env bash
#SBATCH --job-name=base_fold
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x_%A_%a.txt
# Trains the base learner of BAM and MSANet on each fold into RUNS/base_foldN. Options are passed to launch/train_base.py.
#     sbatch slurm/base_fold.sh                all four folds
#     sbatch --array 2 slurm/base_fold.sh      fold 2
source slurm/common.sh

recipe base coco embedded
complete "$RUNS/base_fold$FOLD" launch/train_base.py "${RECIPE[@]}" --episodes.fold "$FOLD" "${VALIDATE[@]}" \
    ${BACKBONE_WEIGHTS:+--method.backbone_weights "$BACKBONE_WEIGHTS"} "$@"
