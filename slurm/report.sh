#!/usr/bin/env bash
#SBATCH --job-name=report
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=00:30:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x_%j.txt
# One page over every evaluation under RUNS, beside the papers' figures: RUNS/comparison.
#     sbatch slurm/report.sh
source slurm/common.sh

python launch/report.py "$RUNS"/*_evaluation --out "$RUNS/comparison"
