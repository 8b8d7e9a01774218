"""A file is whole or not there; locks hold between processes and end with them."""

import errno
import signal
import subprocess
import sys

import pytest

from crgan.files import lock, write_atomically


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        write_atomically(path, write)
    assert caught.value.filename == str(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a[1].txt"
    path.write_text("old")
    code = (
        "import sys, os, signal; from crgan.files import write_atomically\n"
        "write_atomically(sys.argv[1], lambda t: (t.write_text('half'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_files_have_the_permissions_of_the_umask(tmp_path):
    write_atomically(tmp_path / "a.txt", lambda temporary: temporary.touch())
    (tmp_path / "b.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_lock_holds_between_processes_and_ends_with_its_own(tmp_path):
    code = (
        "import sys; from pathlib import Path; from crgan.files import lock\n"
        "with lock(Path(sys.argv[1])) as acquired: print(acquired, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        with lock(tmp_path) as acquired:
            assert not acquired
        holder.kill()
        holder.wait()
    with lock(tmp_path, timeout=5) as acquired:
        assert acquired
        with lock(tmp_path) as again:
            assert not again
