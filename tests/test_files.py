"""A file is whole or not there, and what a killed writer left goes away."""

import signal
import subprocess
import sys

import pytest

from crgan.files import write_atomically

WRITER = """
import sys, time
from crgan.files import write_atomically

def write(temporary):
    temporary.write_text("half")
    print(temporary.name, flush=True)
    sys.stdin.read()

write_atomically(sys.argv[1], write)
"""


def test_only_what_a_killed_writer_left_is_removed(tmp_path):
    path = tmp_path / "a[1].txt"
    write_atomically(path, lambda temporary: temporary.write_text("old"))
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        half = tmp_path / writer.stdout.readline().strip()
        assert half.read_text() == "half"
        assert path.read_text() == "old"
        write_atomically(path, lambda temporary: temporary.write_text("new"))
        assert half.exists()  # its writer lives
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert half.exists()
    write_atomically(path, lambda temporary: temporary.write_text("newer"))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "newer"


def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, write)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]
