#!/bin/bash
# A SLURM of one node on this machine, for tests: munge, the controller and the node, below the folder $1.
# It needs root. `one_node_slurm.sh FOLDER start` and `one_node_slurm.sh FOLDER stop`.
set -euo pipefail
folder=$(realpath -m "$1")
export SLURM_CONF=$folder/slurm.conf

if [ "$2" = stop ]; then
    scancel --user root 2>/dev/null || true
    for name in slurmd slurmctld munged; do
        [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
    done
    exit 0
fi

command -v slurmctld >/dev/null && command -v munged >/dev/null || {
    apt-get update -q && apt-get install -y -q --no-install-recommends slurm-wlm munge
}
mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
chmod 755 "$folder"
[ -s "$folder/munge/key" ] || dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
chmod 700 "$folder/munge" && chmod 400 "$folder/munge/key"
host=$(hostname -s)
cores=$(getconf _NPROCESSORS_ONLN) # nproc would read OMP_NUM_THREADS
cat >"$SLURM_CONF" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
UnkillableStepTimeout=900
SchedulerParameters=batch_sched_delay=1,requeue_delay=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
munged --force --key-file="$folder/munge/key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge/seed"
slurmctld
slurmd
for _ in $(seq 60); do
    # a step of a SLURM that was stopped before may have drained the node
    scontrol update nodename="$host" state=resume 2>/dev/null || true
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && exit 0
    sleep 1
done
tail -20 "$folder"/slurm*.log >&2
echo "error: expected an idle node within a minute, got $(sinfo --noheader 2>&1)" >&2
exit 1
