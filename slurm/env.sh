# shellcheck shell=bash disable=SC2034    # what is set here is read by the scripts beside it
# The one file that a site edits. Any of these may also be set in the environment of the user who submits.
#
#     source slurm/env.sh            once in a login shell, for the options of sbatch (first part); after a change
#                                    in a new shell
#     sbatch slurm/coco_fold.sh      the scripts read this file again, for the rest

# --- What sbatch asks for. Empty: the cluster's default, or what you give sbatch. Nodes: `sbatch --nodes 4 ...`.
: "${PARTITION:=}"
: "${ACCOUNT:=}"
: "${GPUS_PER_NODE:=}"            # such as 8 or a100:8; the jobs then refuse to start if a node has fewer
: "${GRES:=}"                     # instead of GPUS_PER_NODE where the cluster wants it: gpu:8 or gpu:a100:8
: "${CPUS_PER_GPU:=}"             # such as 8: the ranks' data workers run on them
: "${MEMORY_PER_NODE:=}"          # such as 400G, or 0 for all of a node's
: "${CPU_PARTITION:=}"            # pipeline.sh: for packing and report, which get no GPU; empty: PARTITION
: "${PACK_CPUS:=16}"              # pipeline.sh: cores that pack COCO; a node must have as many

# --- What a job finds. Paths are seen from the compute nodes; relative ones begin at the root of the checkout.
load_modules() { :; }             # such as: module load cuda/12.4
: "${VENV:=.venv}"                # the environment that `make setup` made
: "${RUNS:=runs}"                 # run directories, on a file system that all nodes share
: "${COCO_RAW:=}"                 # input of pack.sh: folder with train2014, val2014 and annotations
: "${COCO_SHARDS:=}"              # output of pack.sh (train2014), which all jobs read. Empty: the embedded data
: "${COCO_VAL_SHARDS:=}"          # the same for val2014: the test images; training validates on them
: "${BACKBONE_WEIGHTS:=}"         # ResNet-50 of ImageNet with the deep stem (resnet50_v2.pth): qgnet and base_fold.sh
: "${TORCHVISION_WEIGHTS:=}"      # torchvision's ResNet-50: mshnet. Empty: a random backbone
: "${DINO_WEIGHTS:=}"             # GF-SAM: DINOv2 ViT-L/14
: "${SAM_WEIGHTS:=}"              # GF-SAM: SAM ViT-H
: "${STAGE_TO:=}"                 # node-local folder to copy shards to before the first step, such as /scratch/$USER
: "${KEEP_STAGED:=}"              # yes: leave the copies there; empty: the last job of a node that used one removes it

# --- How the ranks find each other.
: "${PORT_FIRST:=20000}"          # rendezvous at PORT_FIRST + job id modulo PORT_COUNT, on the job's first node
: "${PORT_COUNT:=10000}"
: "${NETWORK_INTERFACE:=}"        # such as ib0; empty: NCCL and gloo choose

# --- How the ranks run.
: "${RANKS_PER_NODE:=}"           # empty: one a GPU; one on a node without GPUs
: "${STRATEGY:=ddp}"              # ddp, zero1 or zero2 (DeepSpeed) for training
: "${PRECISION:=}"                # bf16, tf32 or float32; empty: as in the recipe
: "${CPU_AFFINITY:=}"             # numa: each rank on the cores next to its GPU; needs nvidia-ml-py in VENV
: "${CONTAINER:=}"                # words before accelerate on every node, such as: apptainer exec --nv fss.sif
: "${SRUN_OPTIONS:=}"             # further options of srun, such as pyxis's --container-image=... --container-mounts=...
: "${RESTARTS:=2}"                # restarts of a job after a rank or a node died

export SBATCH_REQUEUE=1
[[ -z $PARTITION ]] || export SBATCH_PARTITION=$PARTITION
[[ -z $ACCOUNT ]] || export SBATCH_ACCOUNT=$ACCOUNT
[[ -z $GPUS_PER_NODE ]] || export SBATCH_GPUS_PER_NODE=$GPUS_PER_NODE
[[ -z $GRES ]] || export SBATCH_GRES=$GRES
[[ -z $MEMORY_PER_NODE ]] || export SBATCH_MEM_PER_NODE=$MEMORY_PER_NODE
[[ -z $CPUS_PER_GPU ]] || export SBATCH_CPUS_PER_GPU=$CPUS_PER_GPU
