#!/usr/bin/env bash
# A SLURM cluster on this machine for the tests, without systemd: slurmctld, slurmdbd with mariadb, and two nodes of
# two CPUs and a pretended GPU each. All of it listens on loopback or on a socket, and lives in one folder.
#
#   tests/slurm_cluster.sh install          the packages (Debian, Ubuntu); as root
#   tests/slurm_cluster.sh start FOLDER     as root
#   tests/slurm_cluster.sh stop FOLDER
#   tests/slurm_cluster.sh start|stop FOLDER slurmctld|n1|n2    one daemon of a running cluster
set -euo pipefail
unset SLURM_CONF

if [ "${1:-}" = install ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurmdbd slurm-client munge mariadb-server
  exit
fi

ROOT=$(realpath -m "${2:?a folder}")
HOST=$(hostname -s)
MUNGE=/run/munge/munge.socket.2

# end NAME: ends a daemon by its pid file, by force after ten seconds.
end() {
  local pid_file=$ROOT/$1.pid pid
  [ -s "$pid_file" ] || return 0
  pid=$(cat "$pid_file")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$pid_file"
}

# until_true COMMAND...: waits for it for up to a minute, since a busy machine starts a database slowly.
until_true() {
  for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
  echo "tests/slurm_cluster.sh: gave up waiting for: $*" >&2
  exit 1
}

idle() { [ "$(sinfo -h -o %T | sort -u)" = idle ]; }
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }

# Jobs find their configuration at the default place alone: the executor takes SLURM_* out of their environment.
link() {
  mkdir -p /etc/slurm
  for name in slurm gres slurmdbd; do
    local place=/etc/slurm/$name.conf
    if [ -e "$place" ] && [ "$(readlink "$place")" != "$ROOT/$name.conf" ]; then
      echo "tests/slurm_cluster.sh: $place is there and not ours; nothing was started" >&2
      exit 1
    fi
  done
  for name in slurm gres slurmdbd; do ln -sfn "$ROOT/$name.conf" "/etc/slurm/$name.conf"; done
}

unlink_ours() {
  for name in slurm gres slurmdbd; do
    if [ "$(readlink "/etc/slurm/$name.conf" || true)" = "$ROOT/$name.conf" ]; then rm "/etc/slurm/$name.conf"; fi
  done
}

configure() {
  local memory
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.4)}' /proc/meminfo)
  cat >"$ROOT/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$MUNGE
DbdHost=localhost
DbdPort=26810
SlurmUser=root
PidFile=$ROOT/slurmdbd.pid
LogFile=$ROOT/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
CONF
  chmod 600 "$ROOT/slurmdbd.conf"
  cat >"$ROOT/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=26817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$MUNGE
CredType=cred/munge
SlurmctldPidFile=$ROOT/slurmctld.pid
SlurmctldLogFile=$ROOT/slurmctld.log
SlurmdPidFile=$ROOT/%n.pid
SlurmdLogFile=$ROOT/%n.log
SlurmdSpoolDir=$ROOT/spool-%n
StateSaveLocation=$ROOT/state
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=26810
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
GresTypes=gpu
KillWait=2
OverTimeLimit=0
CONF
  : >"$ROOT/gres.conf"
  for n in 1 2; do
    # Without File= SLURM takes no gpu; it looks at nothing but that the file is there.
    : >"$ROOT/gpu$n"
    mkdir -p "$ROOT/spool-n$n"
    echo "NodeName=n$n Name=gpu File=$ROOT/gpu$n" >>"$ROOT/gres.conf"
    echo "NodeName=n$n NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((26817 + n)) CPUs=2 RealMemory=$memory Gres=gpu:1" >>"$ROOT/slurm.conf"
  done
  echo "PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP" >>"$ROOT/slurm.conf"
  mkdir -p "$ROOT/state"
}

start_munge() {
  mkdir -p "$ROOT/munge" /run/munge
  head -c 1024 /dev/urandom >"$ROOT/munge/key"
  chown -R munge:munge "$ROOT/munge" /run/munge
  chmod 700 "$ROOT/munge"
  chmod 400 "$ROOT/munge/key"
  setpriv --reuid=munge --regid=munge --clear-groups munged --force --key-file="$ROOT/munge/key" --socket=$MUNGE \
    --log-file="$ROOT/munge/log" --pid-file="$ROOT/munge/pid" --seed-file="$ROOT/munge/seed"
  until_true munge -n --socket=$MUNGE
  cp "$ROOT/munge/pid" "$ROOT/munge.pid"
}

start_accounting() {
  mkdir -p "$ROOT/mysql"
  chown mysql:mysql "$ROOT/mysql"
  mariadb-install-db --no-defaults --user=mysql --datadir="$ROOT/mysql" --auth-root-authentication-method=normal \
    --skip-test-db >"$ROOT/mysql.log" 2>&1
  # A data directory of our own and no network; --no-defaults, so that the machine's own database is left alone.
  setsid mariadbd --no-defaults --user=mysql --datadir="$ROOT/mysql" --socket="$ROOT/mysql/sock" --skip-networking \
    --pid-file="$ROOT/mysql/pid" --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 >>"$ROOT/mysql.log" 2>&1 </dev/null &
  until_true mariadb-admin --no-defaults -S "$ROOT/mysql/sock" ping
  cp "$ROOT/mysql/pid" "$ROOT/mysql.pid"
  # slurmdbd knows no socket but the default one.
  mkdir -p /run/mysqld
  ln -sfn "$ROOT/mysql/sock" /run/mysqld/mysqld.sock
  slurmdbd
  until_true listening 26810
}

case "$1 ${3:-all}" in
  "start slurmctld") slurmctld ;;
  "stop slurmctld" | "stop n1" | "stop n2") end "$3" ;;
  "start n1" | "start n2") slurmd -N "$3" ;;
  "start all")
    mkdir -p "$ROOT"
    chmod 755 "$ROOT"
    configure
    link
    start_munge
    start_accounting
    slurmctld -c
    slurmd -N n1 -c
    slurmd -N n2 -c
    until_true idle
    sinfo -N -o "%N %T %c %m %G"
    ;;
  "stop all")
    for name in slurmctld n1 n2 slurmdbd mysql munge; do end $name; done
    unlink_ours
    if [ "$(readlink /run/mysqld/mysqld.sock || true)" = "$ROOT/mysql/sock" ]; then rm /run/mysqld/mysqld.sock; fi
    ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
