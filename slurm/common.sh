# shellcheck shell=bash
# Shared by the job scripts: the settings of the site, and `complete`, which runs a job on all nodes until it is finished,
# through restarts. Sourced by the batch script, in the root of the checkout.
# shellcheck disable=SC2034    # RECIPE, VALIDATE and FOLD are the scripts'
set -euo pipefail

say() { echo "[slurm $(date +%H:%M:%S)] $*"; }
stop() { say "error: $*" >&2; exit 1; }

[[ -n ${SLURM_JOB_ID:-} ]] || stop "this runs under SLURM: sbatch $0"
# shellcheck source=slurm/env.sh
source slurm/env.sh
load_modules
PATH=$(cd "$VENV" && pwd)/bin:$PATH
export PATH

NODES=${SLURM_NNODES:-1}
GPUS=${SLURM_GPUS_ON_NODE:-0}
RANKS=${RANKS_PER_NODE:-$((GPUS > 0 ? GPUS : 1))}
FOLD=${SLURM_ARRAY_TASK_ID:-0}
# The last task of an array has the array's own number for its id: by that, SLURM would take all of its tasks.
JOB=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
NAME=${SLURM_JOB_NAME}_$JOB

# The address of the first node as SLURM itself reaches it: a node's name need not resolve on the others.
HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
HEAD_ADDRESS=$(scontrol show node "$HEAD_NODE" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
PORT=$((PORT_FIRST + SLURM_JOB_ID % PORT_COUNT))
export NODES RANKS NAME HEAD_ADDRESS PORT STRATEGY STAGE_TO KEEP_STAGED CONTAINER
if [[ -n $NETWORK_INTERFACE ]]; then
    export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE GLOO_SOCKET_IFNAME=$NETWORK_INTERFACE
fi
[[ $CPU_AFFINITY != numa ]] || export ACCELERATE_CPU_AFFINITY=1
say "$NAME on $NODES node(s) of $RANKS rank(s), start $((${SLURM_RESTART_COUNT:-0} + 1))"

# SLURM sends USR1 before the time limit, TERM before a preemption and at a cancellation. Both ask the ranks to save
# and exit. srun passes signals on to node.sh on every node.
asked=
child=
ask() {    # ask SIGNAL
    asked=${asked:-$1}
    [[ -z $child ]] || kill -USR1 "$child" 2>/dev/null || true
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM

attend() {    # attend COMMAND...: run it while listening for signals; its exit code
    local code=0
    "$@" &
    child=$!
    while true; do
        wait "$child" && code=0 || code=$?
        kill -0 "$child" 2>/dev/null || break    # wait also returns when a signal came
    done
    child=
    return "$code"
}

again() {    # put the job back into the queue: it resumes at its last checkpoint
    # A job that got TERM and does not run any more was cancelled and must stay away, or SLURM has put it back itself.
    if [[ $asked == TERM && $(squeue --noheader --jobs "$JOB" --format %T) != RUNNING ]]; then
        say "ended by SLURM: $1"
    else
        say "back into the queue: $1"
        scontrol requeue "$JOB" || true    # SLURM may be doing so at this moment
    fi
    exit 75
}

status() { sed -n 's/.*"status": "\([a-z]*\)".*/\1/p' "$1/status.json" 2>/dev/null || true; }

complete() {    # complete RUN_DIR LAUNCHER OPTION...: run a launcher on all ranks to its end
    local dir=$1 attempt asks=${GPUS_PER_NODE:-$GRES} promised device=() options
    shift
    promised=${asks##*:}    # of a type too, as a100:8
    read -ra options <<<"$SRUN_OPTIONS"
    ((GPUS >= ${promised:-0})) ||
        stop "env.sh asks for $asks GPUs a node and this node gives $GPUS: source slurm/env.sh before sbatch"
    ((GPUS == 0)) || device=(--run.device cuda)    # or, under a driver that torch cannot use, they would idle
    for ((attempt = 0; attempt <= RESTARTS; attempt++)); do
        [[ -z $asked ]] || again "asked to stop"
        rm -f "$dir/status.json"    # so that it is this attempt's: exit codes do not survive srun
        attend srun --nodes="$NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=1 \
            "${options[@]}" bash slurm/node.sh "$@" --run.dir "$dir" --run.world_size "$((NODES * RANKS))" "${device[@]}" \
            ${PRECISION:+--run.precision "$PRECISION"} || true
        case $(status "$dir") in
            finished) return ;;
            interrupted) again "saved as asked" ;;
            "") [[ -n $asked ]] || stop "$dir was refused before it began: see above" ;;
            *) say "$dir broke off (attempt $((attempt + 1)) of $((RESTARTS + 1)))" ;;
        esac
    done
    stop "$dir broke off $((RESTARTS + 1)) times: see above and slurm/logs/${NAME}_node*.txt"
}

recipe() {    # recipe FOLDER COCO EMBEDDED: sets RECIPE to the options that choose the recipe and the training images,
              # and VALIDATE to those that name the images to validate on
    VALIDATE=()
    if [[ -n $COCO_SHARDS ]]; then
        RECIPE=(--config "configs/$1/$2.yaml" --data.shards "$COCO_SHARDS")
        [[ -z $COCO_VAL_SHARDS ]] || VALIDATE=(--validate.shards "$COCO_VAL_SHARDS")
    else
        RECIPE=(--config "configs/$1/$3.yaml")
        say "env.sh names no COCO_SHARDS: on the embedded data"
    fi
}
