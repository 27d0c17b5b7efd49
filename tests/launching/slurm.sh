#!/usr/bin/env bash
# A real Slurm of one node, on this host, from Debian's packages slurm-wlm and munge. As root:
#   slurm.sh up FOLDER     starts it; then SLURM_CONF=FOLDER/slurm.conf finds it
#   slurm.sh down FOLDER   ends what was started
set -eu
folder=${2:?up or down, and a folder}
if [ "$1" = down ]; then
  for each in slurmd slurmctld munged; do
    if [ -e "$folder/$each.pid" ]; then kill "$(cat "$folder/$each.pid")" 2>/dev/null || true; fi
  done
  exit
fi
mkdir -p "$folder/spool" "$folder/state" /run/munge
if [ ! -S /run/munge/munge.socket.2 ] || ! munge -n >/dev/null 2>&1; then
  if [ ! -s /etc/munge/munge.key ]; then
    (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
  fi
  chown munge:munge /etc/munge/munge.key /run/munge
  runuser -u munge -- /usr/sbin/munged
  cp /run/munge/munged.pid "$folder/munged.pid"
fi
memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
cat >"$folder/slurm.conf" <<CONF
ClusterName=luthier
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired: two minutes by default.
AuthInfo=cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
ReturnToService=2
MpiDefault=none
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd
for _ in $(seq 60); do
  if sinfo --noheader --format=%t 2>/dev/null | grep -qx idle; then exit; fi
  sleep 0.5
done
echo "the node does not become idle: see $folder/slurmctld.log and $folder/slurmd.log" >&2
exit 1
