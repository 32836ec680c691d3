#!/usr/bin/env bash
#SBATCH --job-name=pack
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x_%j.txt
# Packs COCO from env.sh's COCO_RAW into COCO_SHARDS and COCO_VAL_SHARDS; the embedded data if it names none.
# Options are passed to launch/pack.py. Put back into the queue, it continues. A packed set needs no raw images.
#     sbatch --cpus-per-task 32 slurm/pack.sh
source slurm/common.sh

pack() {    # pack LAYOUT OPTION...
    attend python launch/pack.py "$@" --processes "${SLURM_CPUS_PER_TASK:-$(nproc)}" ||
        { [[ -n $asked ]] && again "asked to stop"; } || stop "packing failed: see above"
}

coco() {    # coco PART FOLDER OPTION...
    if [[ -e $2/manifest.json && ! -e $COCO_RAW/$1 ]]; then
        say "$2 is packed, and there is no $COCO_RAW/$1 to compare it with: left as it is"
    else
        pack coco --images "$COCO_RAW/$1" --annotations "$COCO_RAW/annotations/instances_$1.json" --out "$2" "${@:3}"
    fi
}

if [[ -z $COCO_SHARDS ]]; then
    # As launch/pretrain_prior.py packs them at first use.
    pack synthetic --out "${FSS_DATA:-data}/synthetic" --count 800 --superpixels slic felzenszwalb --samples-per-shard 50 "$@"
else
    coco train2014 "$COCO_SHARDS" "$@"
    coco val2014 "${COCO_VAL_SHARDS:?env.sh names COCO_SHARDS but no COCO_VAL_SHARDS}" --superpixels "$@"
fi
