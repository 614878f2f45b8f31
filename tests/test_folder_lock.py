"""Two writers in one folder: the second is told who the first one is, and a killed one locks nobody out."""

import errno
import fcntl
import json
import multiprocessing
import os
import platform
import signal
import time
from pathlib import Path

import pytest
from script_runs import command
from test_training_faults import make_trainer

import train_pretrain
from adaptor_hf import folder_lock
from adaptor_hf.files import folder_written_aside, remove_dead_partials, written_aside
from adaptor_hf.folder_lock import FolderLock, Holder, only_writer
from adaptor_hf.privacy.mode import private_mode
from adaptor_hf.training.interruption import Interrupted
from adaptor_hf.training.run_folder import REQUEUE, run_folder

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, pipe, with_child: bool = False) -> None:
    FolderLock(folder).acquire()
    child = os.fork() if with_child else None
    if child != 0:
        pipe.send(child)
    time.sleep(600)


def start_writer(folder: Path, **kwargs):
    """A process that writes in a folder, and the number of its child, if it is to have one."""
    mine, its = FORK.Pipe()
    process = FORK.Process(target=hold, args=(folder, its), kwargs=kwargs)
    process.start()
    return process, mine.recv()


def kill(process) -> None:
    process.kill()
    process.join()


@pytest.fixture
def other(tmp_path):
    """A process that writes in the folder `run`."""
    process, _ = start_writer(tmp_path / "run")
    yield process
    kill(process)


def leave_record(folder: Path, **changes) -> None:
    """The record of a writer that did not say that it ended."""
    folder.mkdir(exist_ok=True)
    record = {"host": "elsewhere", "pid": 17, "started": 1.0, "since": "2026-01-02T03:04:05+00:00"}
    (folder / ".run.holder").write_text(json.dumps(record | changes))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_a_writer_made_and_left_empty_goes_with_it(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "new", "used"):
        with only_writer(tmp_path / name):
            if name == "used":
                (tmp_path / name / "file").write_text("")
    assert names_in(tmp_path) == ["there", "used"]


def test_a_second_writer_is_told_who_writes_and_what_to_do(other, tmp_path):
    since = json.loads((tmp_path / "run" / ".run.holder").read_text())["since"]
    who = rf"\(on this machine, process {other.pid}, since {since.replace('+', '.')}\)"
    for take_over in (False, True):
        with pytest.raises(BlockingIOError, match=f"Another run {who} writes to .*run. Wait until .*--output_dir."):
            FolderLock(tmp_path / "run", take_over=take_over).acquire()
    with only_writer(tmp_path / "beside"):
        pass


def test_a_killed_writer_locks_nobody_out_and_leaves_nothing(other, tmp_path):
    kill(other)
    assert names_in(tmp_path / "run") == [".run.holder", ".run.lock"]
    with only_writer(tmp_path / "run"):
        assert Holder.read(tmp_path / "run" / ".run.holder").pid == os.getpid()
    assert names_in(tmp_path / "run") == []


def test_a_killed_writers_children_hold_no_lock(tmp_path):
    """Workers that load data may outlive a killed run for a while."""
    process, child = start_writer(tmp_path / "run", with_child=True)
    try:
        kill(process)
        os.kill(child, 0)
        with only_writer(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_record_is_there_while_the_folder_is_written_and_names_this_process(tmp_path):
    with only_writer(tmp_path / "run"):
        found = Holder.read(tmp_path / "run" / ".run.holder")
        assert (found.host, found.pid) == (platform.node(), os.getpid())
        assert found.is_alive()
    assert names_in(tmp_path) == []


def test_in_private_mode_no_machine_is_named(tmp_path):
    with private_mode(b"k" * 32), only_writer(tmp_path / "run"):
        assert platform.node() not in (tmp_path / "run" / ".run.holder").read_text()
    leave_record(tmp_path / "run", host="radiology-3")
    with private_mode(b"k" * 32), pytest.raises(BlockingIOError, match="on another machine, process 17") as raised:
        FolderLock(tmp_path / "run").acquire()
    assert "radiology-3" not in str(raised.value)


def test_one_process_may_lock_a_folder_again(tmp_path):
    (tmp_path / "other").mkdir()
    with only_writer(tmp_path / "run"):
        with only_writer(tmp_path / "other" / ".." / "run"):
            pass
        assert (tmp_path / "run" / ".run.lock").exists(), "the outer one still holds it"
    assert names_in(tmp_path) == ["other"]


def test_waiting_ends_when_the_other_does(other, tmp_path, caplog):
    lock = FolderLock(tmp_path / "run")
    with pytest.raises(BlockingIOError):
        lock.acquire(timeout=0.3)
    kill(other)
    lock.acquire(timeout=60)
    lock.release()
    assert caplog.text.count("Waiting for it") == 1


def count_up(folder: str, times: int) -> None:
    path = Path(folder) / "count"
    for _ in range(times):
        with only_writer(folder, timeout=60):
            count = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(count + 1))


def test_no_two_are_inside_at_once_though_the_lock_file_goes_each_time(tmp_path):
    (tmp_path / "count").write_text("0")
    workers = [FORK.Process(target=count_up, args=(str(tmp_path), 8)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert (tmp_path / "count").read_text() == "24"


class TestRecordsOfOtherMachines:
    def test_one_stops_the_run_until_the_user_says_that_it_ended(self, tmp_path):
        leave_record(tmp_path / "run")
        with pytest.raises(BlockingIOError, match=r"on elsewhere, process 17, since 2026-01-02.*add --take_over"):
            FolderLock(tmp_path / "run").acquire()
        with only_writer(tmp_path / "run", take_over=True):
            assert Holder.read(tmp_path / "run" / ".run.holder").host == platform.node()
        with only_writer(tmp_path / "run"):
            pass

    def test_where_the_lock_alone_decides_it_does_not(self, tmp_path):
        leave_record(tmp_path / "run")
        with only_writer(tmp_path / "run", strict=False):
            pass

    def test_a_requeued_job_is_not_locked_out_by_itself(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SLURM_JOB_ID", "42")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        leave_record(tmp_path / "run", job="42", restarts=0)
        with only_writer(tmp_path / "run"):
            pass
        # Another step of the same job, or another job, is another run.
        for job, restarts in (("42", 1), ("43", 0)):
            leave_record(tmp_path / "run", job=job, restarts=restarts)
            with pytest.raises(BlockingIOError, match="--take_over"):
                FolderLock(tmp_path / "run").acquire()

    def test_a_lock_that_a_server_keeps_for_a_lost_machine_is_taken_over(self, other, tmp_path):
        leave_record(tmp_path / "run")
        with pytest.raises(BlockingIOError, match=r"Another run \(on elsewhere"):
            FolderLock(tmp_path / "run").acquire()
        with only_writer(tmp_path / "run", take_over=True):
            assert Holder.read(tmp_path / "run" / ".run.holder").pid == os.getpid()
            assert in_a_fork(is_locked, tmp_path / "run")


def is_locked(folder: Path) -> bool:
    folder_lock._held.clear()  # those of the parent
    try:
        FolderLock(folder).acquire()
    except BlockingIOError:
        return True
    return False


def in_a_fork(function, *arguments):
    with FORK.Pool(1) as pool:
        return pool.apply(function, arguments)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
class TestFileSystemsWithoutLocks:
    @pytest.fixture(autouse=True)
    def without_locks(self, number, monkeypatch):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    def test_the_record_tells_runs_of_this_machine_apart(self, tmp_path, caplog):
        with only_writer(tmp_path / "run"):
            assert "has no locks: start no second run there from another machine" in caplog.text
        assert names_in(tmp_path) == []
        me = Holder.of_this_process()
        leave_record(tmp_path / "run", host=me.host, pid=me.pid, started=me.started)
        with pytest.raises(BlockingIOError, match=f"Another run .on this machine, process {os.getpid()}"):
            FolderLock(tmp_path / "run", take_over=True).acquire()
        leave_record(tmp_path / "run", host=me.host, pid=me.pid, started=me.started - 1000)
        with only_writer(tmp_path / "run"):
            pass

    @pytest.mark.parametrize("leave", [{"take_over": True}, {"strict": False}])
    def test_a_record_of_another_machine_stops_at_once(self, tmp_path, leave):
        leave_record(tmp_path / "run")
        with pytest.raises(BlockingIOError, match="--take_over"):
            FolderLock(tmp_path / "run").acquire(timeout=600)
        with only_writer(tmp_path / "run", **leave):
            pass


def test_a_damaged_record_says_nothing(tmp_path):
    (tmp_path / ".run.holder").write_text('{"host": 1')
    with only_writer(tmp_path):
        pass


def test_what_dead_processes_wrote_aside_goes_and_what_others_write_stays(tmp_path):
    dead = in_a_fork(os.getpid)
    with written_aside(tmp_path / "a") as aside:
        aside.write_text("whole")
        living = aside.name
        machine = living.removeprefix(".a.").partition("-")[0]
        elsewhere = "0000" if machine != "0000" else "0001"
        left = [
            tmp_path / f".b.{machine}-{dead}-01234567.partial",
            tmp_path / "deep" / f".c.{machine}-{dead}-0123abcd.partial",
        ]
        other = tmp_path / f".d.{elsewhere}-{dead}-01234567.partial"
        not_ours = tmp_path / ".somebody.partial"
        left[1].mkdir(parents=True)
        for path in (left[0], left[1] / "file", other, not_ours):
            path.write_text("half")
        remove_dead_partials(tmp_path)
        assert names_in(tmp_path) == sorted([living, other.name, not_ours.name, "deep"])
        assert names_in(tmp_path / "deep") == []
        remove_dead_partials(tmp_path, dead)
        assert not other.exists()
    assert names_in(tmp_path) == [not_ours.name, "a", "deep"]


def write_half(folder: Path) -> None:
    with folder_written_aside(folder) as aside:
        (aside / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_that_was_left_half_written_goes_when_it_is_written_again(tmp_path):
    process = FORK.Process(target=write_half, args=(tmp_path / "tower",))
    process.start()
    process.join()
    assert len(names_in(tmp_path)) == 1
    with folder_written_aside(tmp_path / "tower") as aside:
        (aside / "whole").write_text("whole")
    assert names_in(tmp_path) == ["tower"]


def test_a_second_pre_training_and_a_second_trainer_stop_before_anything_is_computed(
    other, tmp_path, cache_folder, views
):
    (tmp_path / "run" / "checkpoint-5").mkdir()  # that of the run that goes on, not of an earlier one
    with pytest.raises(BlockingIOError, match=f"process {other.pid}"):
        train_pretrain.main(command(cache_folder, tmp_path / "run", use_cpu=True)[2:])
    with pytest.raises(BlockingIOError, match=f"process {other.pid}"):
        make_trainer(tmp_path / "run", views).train()
    assert names_in(tmp_path / "run") == [".run.holder", ".run.lock", "checkpoint-5"]


def test_what_a_killed_run_left_goes_at_the_start_of_the_next_one_and_its_checkpoints_stay(tmp_path):
    for name in ("unfinished-checkpoint-5", "unfinished-model", "checkpoint-4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    (tmp_path / REQUEUE).write_text("")
    with run_folder(tmp_path):
        assert names_in(tmp_path) == [".run.holder", ".run.lock", "checkpoint-4"]
    assert names_in(tmp_path) == ["checkpoint-4"]


@pytest.mark.parametrize(("error", "asks"), [(Interrupted, True), (KeyboardInterrupt, False), (ValueError, False)])
def test_only_a_signal_asks_to_go_on(tmp_path, error, asks):
    with pytest.raises(error), run_folder(tmp_path / "run"):
        raise error("stopped")
    assert (tmp_path / "run" / REQUEUE).exists() == asks


@pytest.mark.parametrize("field", [{"pid": "1"}, {"restarts": "1"}, {"started": None}, {"host": 3}, {"job": 5}])
def test_a_record_of_other_types_is_none(tmp_path, field):
    leave_record(tmp_path / "run")
    path = tmp_path / "run" / ".run.holder"
    assert Holder.read(path) is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | field))
    assert Holder.read(path) is None
    path.write_text("[]")
    assert Holder.read(path) is None
