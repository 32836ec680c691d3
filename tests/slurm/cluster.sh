#!/usr/bin/env bash
# A real SLURM of a few virtual nodes on this machine, for tests: its own munged, slurmctld and one slurmd a node, all
# under one folder and on ports of its own. Needs root and the daemons; installs nothing.
#
#     cluster.sh start FOLDER NODES CPUS PORT    daemons up and nodes idle; commands then want SLURM_CONF=FOLDER/slurm.conf
#     cluster.sh stop FOLDER                     ends exactly these daemons
set -euo pipefail

until_true() {    # until_true SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { echo "gave up waiting for: $*" >&2; return 1; }
        sleep 0.2
    done
}

gone() { ! kill -0 "$1" 2>/dev/null; }

configure() {    # configure FOLDER NODES CPUS PORT
    local folder=$1 nodes=$2 cpus=$3 port=$4 host node
    host=$(hostname -s)
    cat <<END
ClusterName=virtual
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
# Several slurmd share one kernel, and a container has no cgroup to give away.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobcomp.txt
END
    for ((node = 1; node <= nodes; node++)); do
        # The names resolve nowhere, as on a site whose compute nodes have no DNS.
        echo "NodeName=v$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=$cpus RealMemory=4000"
    done
    echo "PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60"
    echo "PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF"
}

start() {    # start FOLDER NODES CPUS PORT
    local folder=$1 nodes=$2 node
    mkdir -p "$folder"/{munge,state}
    echo "# none: see ProctrackType" >"$folder/cgroup.conf"
    configure "$@" >"$folder/slurm.conf"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chmod 755 "$folder" "$folder/munge"
    chmod 400 "$folder/munge/key"
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld
    until_true 20 scontrol ping
    for ((node = 1; node <= nodes; node++)); do
        mkdir -p "$folder/spool.v$node"
        slurmd -N "v$node"
    done
    # shellcheck disable=SC2016
    until_true 30 bash -c '[[ $(sinfo --noheader --Node --partition main --states idle | wc -l) == "$0" ]]' "$nodes"
}

stop() {    # stop FOLDER
    local file pid
    for file in "$1"/slurmd.*.pid "$1"/slurmctld.pid "$1"/munged.pid; do
        [[ -s $file ]] || continue
        pid=$(<"$file")
        kill "$pid" 2>/dev/null || true
        until_true 10 gone "$pid" || true
    done
}

"$@"
