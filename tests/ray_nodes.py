"""A real Ray cluster of several nodes on this machine, with a way to kill one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

# By default Ray gives way to every other process, which on a busy machine starves its workers.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class Nodes:
    """A head without cores and nodes of one core each; their processes are told by the folder of this cluster."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="ry", dir="/tmp")  # the paths of sockets must be short
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.start(
            "head", "--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={self.folder}", "--include-dashboard=false"
        )

    def start(self, name, *flags):
        ray = [sys.executable, "-m", "ray.scripts.scripts"]
        flags = flags or (f"--address={self.address}", "--num-cpus=1")
        common = ("--num-gpus=0", "--object-store-memory=80000000", f"--node-name={name}")
        subprocess.run([*ray, "start", *flags, *common], check=True, capture_output=True, env=ENVIRONMENT)

    def processes(self, *words):
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().decode()
            except OSError:
                continue
            if all(word in line for word in (self.folder, *words)):
                found.append(int(path.parent.name))
        return found

    def kill(self, name):
        """As a power cut: its workers end when their raylet is gone."""
        (raylet,) = self.processes("raylet/raylet", f"name={name}\0")
        os.kill(raylet, signal.SIGKILL)

    def stop(self):
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
