"""Commands in processes of their own, and a Ray cluster whose nodes can be killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

# By default Ray gives way to every other process, which on a busy machine starves its workers.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def start(module, *flags, threads=1):
    """Start `python -m crgan.<module>`, whose output and errors come through one pipe."""
    command = [sys.executable, "-m", f"crgan.{module}", *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "surrogateescape"}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and theirs, ignore it
    return subprocess.Popen(command, env=ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}, **pipes)


def finish(process, code=0):
    """Wait for the end of a process with this exit code, and return what it printed."""
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output
    return output


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def ray_cluster():
    """A real cluster on this machine: a head without cores, and what nodes of one core each a test adds and removes."""
    from ray.cluster_utils import Cluster

    os.environ |= ENVIRONMENT
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def cut_power(cluster):
    """Kill the processes of a node."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
