#!/usr/bin/env bash
# Submits everything from raw images to one page over all folds, each job waiting for what it needs:
#
#     pack --> pretrain_prior --> qgnet x 4 folds --> its evaluation x 4 ------+
#        \---> base_fold x 4 ---> msanet x 4 folds -> its evaluation x 4 ------+--> report
#
#     slurm/pipeline.sh --dry-run            print what would be submitted
#     slurm/pipeline.sh                      submit it
#     METHODS=qgnet slurm/pipeline.sh        one method (default: qgnet msanet; also bam, mshnet)
#     slurm/pipeline.sh --nodes 4            further options go to every sbatch of a job that trains or evaluates
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
submit pack slurm/pack.sh
for method in $METHODS; do
    after=$pack
    case $method in
        qgnet)
            submit prior --dependency=afterok:"$pack" "$@" slurm/pretrain_prior.sh "${pretrain[@]}"
            after=$prior
            ;;
        bam | msanet)
            [[ -n $folds ]] || submit folds --dependency=afterok:"$pack" "$@" slurm/base_fold.sh "${base[@]}"
            after=$folds
            ;;
    esac
    # aftercorr: a fold waits for the same fold of an array, not for all four.
    [[ $after == "$folds" ]] && when=aftercorr || when=afterok
    submit trained --dependency="$when:$after" --job-name="$method" --export="ALL,METHOD=$method,PART=train" "$@" \
        slurm/coco_fold.sh "${train[@]}"
    submit evaluated --dependency=aftercorr:"$trained" --job-name="${method}_evaluation" \
        --export="ALL,METHOD=$method,PART=evaluate" "$@" slurm/coco_fold.sh
    last+=("$evaluated")
done
submit report --dependency="afterok$(printf ':%s' "${last[@]}")" slurm/report.sh
