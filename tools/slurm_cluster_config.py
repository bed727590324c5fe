"""Layout of the local test SLURM: its directory, ports, daemons and configuration files."""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NODES = ("gpu001", "gpu002", "gpu003", "gpu004")
GPUS_PER_NODE = 2
CPUS_PER_NODE = 8
MEMORY_MB = 8000
ACCOUNT = "hpc"
CLUSTER = "hpctumor"
HEADER = "# Written by tools/slurm_cluster.py; overwritten by its next `up`, removed by its `down`."

PACKAGES = ("slurm-wlm", "munge", "slurmdbd", "mariadb-server")
PROGRAMS = (
    "munged", "mungekey", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd",
    "sacctmgr", "scontrol", "sinfo", "srun", "sbatch",
)  # fmt: skip
FIRST_PORT, LAST_PORT = 17000, 17200  # below the range of ephemeral ports
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ClusterError(Exception):
    """A message for the user, with an exit code: 4 refused, 1 failed, 2 usage."""

    def __init__(self, message: str, exit_code: int = 4) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def program(name: str) -> str:
    """Return the full path of a program, also from sbin folders, which are often not in a user's PATH."""
    return shutil.which(name, path=SYSTEM_PATH) or name


@dataclass(frozen=True)
class Daemon:
    """One daemon in the foreground. `argv` names the state directory, which identifies the process as ours."""

    name: str
    argv: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.name.partition("-")[0]

    @property
    def log(self) -> str:
        return f"{self.name}.log"


@dataclass(frozen=True)
class Layout:
    """Paths and ports of one test cluster. It uses the ports from `port` on: two, and one for each node."""

    root: Path
    port: int

    @property
    def slurm_conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def munge_socket(self) -> Path:
        return self.root / "munge" / "munge.socket"

    @property
    def munge_key(self) -> Path:
        return self.root / "munge" / "munge.key"

    @property
    def database(self) -> Path:
        return self.root / "mysql"

    @property
    def database_socket(self) -> Path:
        return self.root / "mysqld.sock"

    @property
    def devices(self) -> tuple[Path, ...]:
        return tuple(self.root / "dev" / f"nvidia{index}" for index in range(GPUS_PER_NODE))

    @property
    def folders(self) -> tuple[Path, ...]:
        names = ("log", "munge", "dev", "spool", "state", "tmp")
        return tuple(self.root / name for name in names)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the daemons and of SLURM's commands. slurmdbd.conf cannot set the socket of libmariadb."""
        return {
            "PATH": SYSTEM_PATH,
            "HOME": "/",
            "LC_ALL": "C.UTF-8",
            "SLURM_CONF": str(self.slurm_conf),
            "MYSQL_UNIX_PORT": str(self.database_socket),
        }

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """Daemons in the order in which they start."""
        munged = (
            program("munged"), "--foreground", f"--socket={self.munge_socket}", f"--key-file={self.munge_key}",
            f"--pid-file={self.root}/munge/munged.pid", f"--seed-file={self.root}/munge/munged.seed",
        )  # fmt: skip
        mariadbd = (
            program("mariadbd"), "--no-defaults", "--user=root", f"--datadir={self.database}",
            f"--socket={self.database_socket}", f"--pid-file={self.root}/mariadbd.pid", f"--tmpdir={self.root}/tmp",
            "--skip-networking",
            # slurmdbd requires the long lock time-out; the rest keeps a test database small and fast.
            "--innodb-lock-wait-timeout=900", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-use-native-aio=0",
        )  # fmt: skip
        return (
            Daemon("munged", munged),
            Daemon("mariadbd", mariadbd),
            # slurmdbd has no option for its configuration file; argv[0] carries the directory instead.
            Daemon("slurmdbd", (f"{self.root}/slurmdbd", "-D")),
            Daemon("slurmctld", (program("slurmctld"), "-D", "-f", str(self.slurm_conf))),
            *(
                Daemon(f"slurmd-{node}", (program("slurmd"), "-D", "-f", str(self.slurm_conf), "-N", node))
                for node in NODES
            ),
        )

    @property
    def config_files(self) -> dict[str, str]:
        """Return the text of each file in the state directory by its name; slurm.conf first."""
        gres = f"{HEADER}\nNodeName={','.join(NODES)} Name=gpu File={self.root}/dev/nvidia[0-{GPUS_PER_NODE - 1}]\n"
        return {"slurm.conf": self._slurm_conf(), "slurmdbd.conf": self._slurmdbd_conf(), "gres.conf": gres}

    def _slurmdbd_conf(self) -> str:
        return f"""{HEADER}
AuthType=auth/munge
AuthInfo=socket={self.munge_socket}
DbdHost=localhost
DbdPort={self.port + 1}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
PidFile={self.root}/slurmdbd.pid
DebugLevel=info
"""

    def _slurm_conf(self) -> str:
        host = socket.gethostname().split(".")[0]
        return f"""{HEADER}
ClusterName={CLUSTER}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={self.port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.munge_socket}
CredType=cred/munge

StateSaveLocation={self.root}/state
SlurmdSpoolDir={self.root}/spool/%n
SlurmctldPidFile={self.root}/slurmctld.pid
SlurmdPidFile={self.root}/slurmd-%n.pid

# No cgroups: they need privileges that a container seldom has.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
MpiDefault=none
# A job gets the daemons' limits, not those of whatever shell submitted it.
PropagateResourceLimits=NONE

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
DefMemPerCPU=1000

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={self.port + 1}
AccountingStoragePass={self.munge_socket}
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
MinJobAge=300
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
# Two busy cores can answer late.
MessageTimeout=30
BatchStartTimeout=30

{self._nodes(host)}
PartitionName=DEFAULT Nodes={",".join(NODES)} State=UP DefaultTime=00:10:00 MaxTime=02:00:00
PartitionName=GPU Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=HIGH PriorityTier=10 PreemptMode=OFF GraceTime=0
"""

    def _nodes(self, host: str) -> str:
        has = f"CPUs={CPUS_PER_NODE} RealMemory={MEMORY_MB} Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN"
        return "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {has}"
            for port, node in enumerate(NODES, self.port + 2)
        )


def is_our_conf(path: Path) -> bool:
    with suppress(OSError):
        return path.read_text(errors="replace").startswith(HEADER)
    return False


def find_layout(root: Path) -> Layout | None:
    """Return the layout of the cluster in `root`, running or not."""
    conf = root / "slurm.conf"
    if not is_our_conf(conf):
        return None
    port = next(line for line in conf.read_text().splitlines() if line.startswith("SlurmctldPort="))
    return Layout(root, int(port.partition("=")[2]))


def new_layout(root: Path) -> Layout:
    """Return a layout on free ports."""
    for port in range(FIRST_PORT, LAST_PORT, 10):
        with suppress(OSError):
            for each in range(port, port + 2 + len(NODES)):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("", each))
            return Layout(root, port)
    raise ClusterError(f"no {2 + len(NODES)} free ports in a row between {FIRST_PORT} and {LAST_PORT}.")
