"""Commands in processes of their own, and a real Ray cluster on this machine whose nodes can be killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


class Nodes:
    """A head without cores and nodes of one core each; their processes are told by the folder of this cluster."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="ry", dir="/tmp")  # the paths of sockets must be short
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.start(
            "head", "--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={self.folder}", "--include-dashboard=false"
        )
        return self

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

    def __exit__(self, *error):
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
