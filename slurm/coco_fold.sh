#!/usr/bin/env bash
#SBATCH --job-name=coco_fold
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x_%A_%a.txt
# Meta-trains METHOD (qgnet, bam, msanet, mshnet; default qgnet) on each fold of COCO-20i into RUNS/METHOD_foldN, then
# evaluates its best weights into RUNS/METHOD_foldN_evaluation. Without COCO_SHARDS in env.sh: on the embedded data.
#     sbatch slurm/coco_fold.sh                                       all four folds
#     METHOD=msanet sbatch --array 2 --nodes 2 slurm/coco_fold.sh     MSANet, fold 2, on two nodes
#     sbatch slurm/coco_fold.sh --episodes.shots 5                    options are passed to launch/meta_train.py
#     EVALUATE="--eval.protocol pfenet" sbatch slurm/coco_fold.sh     and these to launch/evaluate.py
#     PART=evaluate sbatch slurm/coco_fold.sh                         only the second half; PART=train: only the first
# A fold's batch of 8 episodes fills one or two GPUs of today; with one episode each, eight are hardly faster. Give every
# fold few GPUs (GPUS_PER_NODE=1 in env.sh), and use the others for more folds, methods and seeds:
#     for seed in 0 1 2; do RUNS=runs/seed$seed sbatch slurm/coco_fold.sh --run.seed $seed; done
source slurm/common.sh

METHOD=${METHOD:-qgnet}
PART=${PART:-train evaluate}
RUN=$RUNS/${METHOD}_fold$FOLD

if [[ $PART == *train* ]]; then
    initial_weights=(${BACKBONE_WEIGHTS:+--method.backbone_weights "$BACKBONE_WEIGHTS"})
    case $METHOD in
        qgnet)
            prior=$RUNS/prior/prior.safetensors
            if [[ -e $prior ]]; then
                initial_weights+=(--method.prior_map on --method.heads true --method.prior_weights "$prior")
                # The embedded images have no ImageNet: the extractor is the backbone too, as in `make demo`.
                [[ -n $COCO_SHARDS ]] || initial_weights+=(--method.backbone_weights "$prior")
            elif [[ -n $COCO_SHARDS ]]; then
                stop "there is no $prior to learn from: sbatch slurm/pretrain_prior.sh first"
            fi
            ;;
        bam | msanet)
            base=$RUNS/base_fold$FOLD/best.safetensors
            [[ -e $base ]] || stop "there is no $base to learn from: sbatch slurm/base_fold.sh first"
            initial_weights=(--method.base_weights "$base")    # which contain the backbone
            ;;
        mshnet) initial_weights=(${TORCHVISION_WEIGHTS:+--method.backbone_weights "$TORCHVISION_WEIGHTS"}) ;;
    esac
    embedded=${METHOD}_embedded
    [[ $METHOD != qgnet ]] || embedded=embedded
    recipe meta "${METHOD}_coco" "$embedded"
    complete "$RUN" launch/meta_train.py "${RECIPE[@]}" --episodes.fold "$FOLD" "${VALIDATE[@]}" \
        "${initial_weights[@]}" "$@"
fi
if [[ $PART == *evaluate* ]]; then
    read -ra options <<<"${EVALUATE:-}"
    STRATEGY=ddp complete "${RUN}_evaluation" launch/evaluate.py --weights "$RUN/best.safetensors" \
        ${COCO_VAL_SHARDS:+--data.shards "$COCO_VAL_SHARDS"} "${options[@]}"
fi
