#!/usr/bin/env bash
# Submits everything from raw images to one page over all folds, each job waiting for what it needs:
#
#     pack --> pretrain_prior --> qgnet x 4 folds --> its evaluation x 4 ------+
#        \---> base_fold x 4 ---> msanet x 4 folds -> its evaluation x 4 ------+--> report
#
#     slurm/pipeline.sh --dry-run            print what would be submitted
#     slurm/pipeline.sh                      submit it
#     METHODS=qgnet slurm/pipeline.sh        one method (default: qgnet msanet; also bam, mshnet)
#     slurm/pipeline.sh --nodes 4            further options are passed to every sbatch of a job that trains or evaluates
#
# If COCO_SHARDS and COCO_VAL_SHARDS are packed, pack is left out, unless PACK=yes. pack and report ask
# for no GPU, in env.sh's CPU_PARTITION.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=slurm/env.sh
source slurm/env.sh

dry=
if [[ ${1:-} == --dry-run ]]; then dry=yes; shift; fi
METHODS=${METHODS:-qgnet msanet}
read -ra train <<<"${TRAIN:-}"       # options of launch/meta_train.py
read -ra pretrain <<<"${PRETRAIN:-}" # of launch/pretrain_prior.py
read -ra base <<<"${BASE:-}"         # of launch/train_base.py

submit() {    # submit NAME SBATCH_OPTION... SCRIPT OPTION...: sets the variable NAME to the job's id
    local -n id=$1
    # A job whose predecessor failed must not wait for ever.
    local command=(sbatch --parsable --kill-on-invalid-dep=yes "${@:2}")
    # sbatch refuses --cpus-per-task beside what env.sh exports of CPUS_PER_GPU.
    [[ -z ${cpu_job:-} ]] || command=(env -u SBATCH_GPUS_PER_NODE -u SBATCH_GRES -u SBATCH_CPUS_PER_GPU "${command[@]}")
    echo "${command[*]}"
    if [[ -n $dry ]]; then
        id="<job $((++jobs))>"
    else
        id=$("${command[@]}")
        echo "    job $id"
    fi
}

# shellcheck disable=SC2034    # submit sets them through their names
jobs=0 pack='' prior='' folds='' trained='' evaluated='' report='' last=()
cpu=(${CPU_PARTITION:+--partition="$CPU_PARTITION"})
data=()    # what waits for the data, and for nothing else
if [[ ${PACK:-} != yes && -e $COCO_SHARDS/manifest.json && -e $COCO_VAL_SHARDS/manifest.json ]]; then
    echo "$COCO_SHARDS and $COCO_VAL_SHARDS are packed: without slurm/pack.sh, which PACK=yes submits all the same"
else
    cpu_job=yes submit pack "${cpu[@]}" ${COCO_SHARDS:+--cpus-per-task="$PACK_CPUS"} slurm/pack.sh
    data=(--dependency=afterok:"$pack")
fi
for method in $METHODS; do
    after=("${data[@]}")
    case $method in
        qgnet)
            submit prior "${data[@]}" "$@" slurm/pretrain_prior.sh "${pretrain[@]}"
            after=(--dependency=afterok:"$prior")
            ;;
        bam | msanet)
            [[ -n $folds ]] || submit folds "${data[@]}" "$@" slurm/base_fold.sh "${base[@]}"
            # A fold waits for the same fold of an array, not for all four.
            after=(--dependency=aftercorr:"$folds")
            ;;
    esac
    submit trained "${after[@]}" --job-name="$method" --export="ALL,METHOD=$method,PART=train" "$@" \
        slurm/coco_fold.sh "${train[@]}"
    submit evaluated --dependency=aftercorr:"$trained" --job-name="${method}_evaluation" \
        --export="ALL,METHOD=$method,PART=evaluate" "$@" slurm/coco_fold.sh
    last+=("$evaluated")
done
cpu_job=yes submit report "${cpu[@]}" --dependency="afterok$(printf ':%s' "${last[@]}")" slurm/report.sh
