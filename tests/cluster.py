"""A Slurm of one's own on the loopback: munge, a controller and a node with four GPUs that are /dev/null."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

CONF = """\
ClusterName=jaxcifar
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for as long as the credentials of its first start are good.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
GresTypes=gpu
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=8 RealMemory=64000 Gres=gpu:4
PartitionName=main Nodes=n1 Default=YES MaxTime=1-0 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=n1 MaxTime=1-0 State=UP PriorityTier=10 PreemptMode=OFF
"""
NEEDED = ('munged', 'slurmctld', 'slurmd', 'sbatch')


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(('127.0.0.1', 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def running(folder: Path):
    """The environment in which sbatch, squeue and the others speak to a cluster that is kept in `folder`."""
    path = f'{os.environ["PATH"]}:/usr/sbin'
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing or os.geteuid():
        pytest.skip(f'no Slurm here: {", ".join(missing) or "needs root"}; apt-get install slurm-wlm munge')
    controller, node = free_ports(2)
    conf = CONF.format(folder=folder, controller=controller, node=node, host=socket.gethostname())
    for name in ('state', 'spool', 'dev'):
        (folder / name).mkdir(parents=True)
    (folder / 'slurm.conf').write_text(conf)
    (folder / 'cgroup.conf').write_text('CgroupAutomount=no\n')
    for i in range(4):
        os.mknod(folder / 'dev' / f'gpu{i}', 0o20666, os.makedev(1, 3))
    (folder / 'gres.conf').write_text(f'Name=gpu File={folder}/dev/gpu[0-3]\n')
    (folder / 'munge.key').write_bytes(os.urandom(1024))
    (folder / 'munge.key').chmod(0o600)
    environment = os.environ | {'PATH': path, 'SLURM_CONF': str(folder / 'slurm.conf')}
    munge = [f'--key-file={folder}/munge.key', f'--socket={folder}/munge.sock', f'--seed-file={folder}/seed',
             f'--pid-file={folder}/munged.pid', f'--log-file={folder}/munged.log']  # fmt: skip
    try:
        for command in (['munged', '--force', *munge], ['slurmctld'], ['slurmd', '-N', 'n1']):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
            if done.returncode:
                pytest.skip(f'{command[0]} does not start here: {done.stderr.strip()}')
        until(lambda: 'idle' in ask(environment, 'sinfo', '-h', '-o', '%T'), 20)
        yield environment
    finally:
        for name in ('slurmd', 'slurmctld', 'munged'):
            with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
                stop(int((folder / f'{name}.pid').read_text()))


def stop(pid: int):
    """End one of ours, and see that it has ended."""
    os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        time.sleep(0.05)
        os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


def ask(environment, *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30).stdout


def until(condition, seconds: float):
    """Wait for it; an error after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)
