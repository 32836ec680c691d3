#!/usr/bin/env bash
# Started by srun once on every node: copies shards to the local disk if STAGE_TO is set, then starts the node's ranks.
#     node.sh LAUNCHER OPTION...
set -euo pipefail

((SLURM_NODEID == 0)) || exec >>"slurm/logs/${NAME}_node$SLURM_NODEID.txt" 2>&1    # the first node writes the log of the job
echo "node $SLURM_NODEID of $NODES: $SLURMD_NODENAME, rendezvous $HEAD_ADDRESS:$PORT"

stage() {    # stage FOLDER: set `copy` to a copy on this node; jobs that share the node share it too, until the last ends
    local lock
    copy=$STAGE_TO/$( (realpath "$1"; cat "$1/manifest.json") | sha256sum | cut -c 1-16)    # another one once repacked
    mkdir -p "$STAGE_TO"
    exec {lock}<>"$copy.lock"
    until flock --shared "$lock" && [[ -e $copy ]]; do    # a job that ends may have removed it in between
        flock --exclusive "$lock"
        if [[ ! -e $copy ]]; then
            rm -rf "$copy.part"
            cp -r "$1" "$copy.part"
            mv "$copy.part" "$copy"
        fi
    done
    used+=("$lock:$copy")
}

release() {    # remove the copies that no other job uses
    local entry
    for entry in "${used[@]}"; do
        if [[ $KEEP_STAGED != yes ]] && flock --exclusive --nonblock "${entry%%:*}"; then rm -rf "${entry#*:}"; fi
    done
}

used=()
trap release EXIT
words=()
option=
for word in "$@"; do
    if [[ -n $STAGE_TO && $option == --*.shards && -d $word ]]; then
        stage "$word"
        word=$copy
        echo "node $SLURM_NODEID: $option $word"
    fi
    words+=("$word")
    option=$word
done

launch=(--num_machines "$NODES" --num_processes "$((NODES * RANKS))" --machine_rank "$SLURM_NODEID")
launch+=(--main_process_ip "$HEAD_ADDRESS" --main_process_port "$PORT" --mixed_precision no --dynamo_backend no)
case $STRATEGY in
    ddp) if ((NODES * RANKS > 1)); then launch+=(--multi_gpu); fi ;;    # on CPUs too: without, accelerate starts one
    zero*)
        launch+=(--use_deepspeed --deepspeed_config_file "configs/deepspeed/$STRATEGY.json")
        launch+=(--deepspeed_multinode_launcher standard)
        ;;
    *) echo "error: STRATEGY is $STRATEGY: give ddp, zero1 or zero2" >&2; exit 1 ;;
esac
read -ra prefix <<<"${CONTAINER:-}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# On USR1 the ranks save and exit; accelerate, their parent, would die of it, so it ignores USR1. The ranks inherit that
# until they install their handler, so the signal is repeated: it may arrive while they are starting.
asked=
trap 'asked=yes' USR1 TERM
(
    trap '' USR1
    exec "${prefix[@]}" accelerate launch "${launch[@]}" "${words[@]}"
) &
launcher=$!
while kill -0 "$launcher" 2>/dev/null; do
    if [[ -n $asked ]]; then pkill -USR1 -P "$launcher" || true; fi
    sleep 2 &
    wait -n "$launcher" "$!" || true    # returns on a signal too
done
wait "$launcher"
