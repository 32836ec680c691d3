#!/usr/bin/env bash
#SBATCH --job-name=pretrain_prior
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x_%j.txt
# Pretrains QGNet's prior extractor into RUNS/prior. Options are passed to launch/pretrain_prior.py.
#     sbatch --nodes 4 slurm/pretrain_prior.sh --data.batch 1024 --optim.warmup 10
source slurm/common.sh

recipe pretrain coco_slic_200 embedded
complete "$RUNS/prior" launch/pretrain_prior.py "${RECIPE[@]}" "$@"
