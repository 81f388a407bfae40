"""The spool on disk: order, bounds, crashes, damage."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.gateway.spool import SpoolError, SpoolReader, SpoolWriter

WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
from agentd.gateway.spool import SpoolWriter
writer = SpoolWriter(Path(sys.argv[1]), most_bytes=1 << 20, segment_bytes=1 << 14)
while True:
    number = writer.seq + 1
    assert writer.append(b"%d:" % number + b"x" * (number % 700))
    print(number, flush=True)
"""


def small(directory: Path, **sizes: Any) -> SpoolWriter:
    chosen: dict[str, Any] = {"most_bytes": 40_000, "segment_bytes": 4_000, "reserve": 2_000, **sizes}
    return SpoolWriter(directory, **chosen)


def everything(directory: Path) -> list[bytes]:
    return [entry.payload for entry in SpoolReader(directory).read(1_000_000)]


def fill(writer: SpoolWriter, size: int = 200) -> int:
    number = 0
    while writer.append(b"f" * size):
        number += 1
    return number


def test_records_come_back_in_order_and_with_their_numbers(tmp_path: Path) -> None:
    with small(tmp_path) as writer:
        for number in range(100):
            assert writer.append(b"%d" % number)
        entries = SpoolReader(tmp_path).read(1000)
    assert [(entry.seq, entry.payload) for entry in entries] == [(n + 1, b"%d" % n) for n in range(100)]


def test_a_reader_gets_each_record_once_while_they_are_written(tmp_path: Path) -> None:
    reader, found = SpoolReader(tmp_path), []
    with small(tmp_path) as writer:
        for number in range(300):
            writer.append(b"%d" % number * 9)
            if number % 7 == 0:
                found += [entry.seq for entry in reader.read(5)]
        while entries := reader.read(5):
            found += [entry.seq for entry in entries]
    assert found == list(range(1, 301))
    assert reader.lost == 0


def test_what_was_not_acknowledged_is_read_again(tmp_path: Path) -> None:
    with small(tmp_path) as writer:
        for number in range(50):
            writer.append(b"%d" % number * 100)
    reader = SpoolReader(tmp_path)
    reader.read(30)
    reader.acknowledge(20)
    assert SpoolReader(tmp_path).read(1)[0].seq == 21
    reader.rewind()
    assert reader.read(1)[0].seq == 21
    with pytest.raises(SpoolError, match="was not read"):
        reader.acknowledge(22)


def test_acknowledged_segments_are_removed_and_make_room(tmp_path: Path) -> None:
    now = 0.0
    writer = SpoolWriter(tmp_path, most_bytes=40_000, segment_bytes=4_000, reserve=2_000, clock=lambda: now)
    taken = fill(writer)
    assert taken > 100
    assert not writer.append(b"f" * 200)
    reader = SpoolReader(tmp_path)
    entries = reader.read(1000)
    reader.acknowledge(entries[-1].seq)
    now = 1.0
    assert writer.append(b"f" * 200)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.wal")) < 9_000
    assert [entry.seq for entry in reader.read()] == [taken + 1]
    writer.close()


def test_a_full_spool_stays_within_its_bound_and_keeps_a_reserve(tmp_path: Path) -> None:
    with small(tmp_path) as writer:
        fill(writer)
        assert writer.append(b"end", urgent=True)
        while writer.append(b"e" * 100, urgent=True):
            pass
        assert sum(path.stat().st_size for path in tmp_path.glob("*.wal")) <= 40_000
    assert everything(tmp_path).count(b"end") == 1


def test_numbers_go_on_after_a_restart_and_after_everything_was_shipped(tmp_path: Path) -> None:
    with small(tmp_path) as writer:
        writer.append(b"a")
        writer.append(b"b")
    reader = SpoolReader(tmp_path)
    reader.read()
    reader.acknowledge(2)
    for segment in tmp_path.glob("*.wal"):
        segment.unlink()
    with small(tmp_path) as writer:
        writer.append(b"c")
    assert [(entry.seq, entry.payload) for entry in reader.read()] == [(3, b"c")]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with small(tmp_path), pytest.raises(SpoolError, match="in use by another gateway"):
        small(tmp_path)
    small(tmp_path).close()


def test_files_are_for_the_owner_only(tmp_path: Path) -> None:
    with small(tmp_path / "spool") as writer:
        writer.append(b"a")
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "spool").glob("*.wal"))


def test_a_record_that_no_reader_would_accept_is_refused(tmp_path: Path) -> None:
    with small(tmp_path) as writer, pytest.raises(SpoolError, match="at most"):
        writer.append(b"x" * (1 << 20) + b"x")


@settings(max_examples=60)
@given(cut=st.integers(0, 2_000), records=st.lists(st.integers(0, 120), min_size=1, max_size=20))
def test_a_tail_torn_anywhere_costs_only_what_was_torn(
    tmp_path_factory: pytest.TempPathFactory, cut: int, records: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    payloads = [b"%d" % number + b"x" * size for number, size in enumerate(records)]
    with SpoolWriter(directory) as writer:
        for payload in payloads:
            assert writer.append(payload)
    (segment,) = directory.glob("*.wal")
    kept = min(cut, segment.stat().st_size)
    os.truncate(segment, kept)
    whole, ends = 0, 0
    for payload in payloads:
        ends += 16 + len(payload)
        whole += ends <= kept
    with SpoolWriter(directory) as writer:
        assert writer.seq == whole
        assert writer.torn_bytes == kept - sum(16 + len(payload) for payload in payloads[:whole])
        writer.append(b"after")
    assert everything(directory) == [*payloads[:whole], b"after"]


def test_a_tail_of_zeros_is_cut_off(tmp_path: Path) -> None:
    with SpoolWriter(tmp_path) as writer:
        writer.append(b"a")
    (segment,) = tmp_path.glob("*.wal")
    with segment.open("ab") as file:
        file.write(bytes(4096))  # what some file systems leave after a power loss
    with SpoolWriter(tmp_path) as writer:
        assert writer.torn_bytes == 4096
        writer.append(b"b")
    assert everything(tmp_path) == [b"a", b"b"]


def test_damage_in_a_finished_segment_is_counted_and_passed_over(tmp_path: Path) -> None:
    with small(tmp_path) as writer:
        for number in range(60):
            writer.append(b"%03d" % number + b"x" * 200)
    first, second, *_ = sorted(tmp_path.glob("*.wal"))
    data = bytearray(first.read_bytes())
    data[5 * 219 + 30] ^= 1
    first.write_bytes(data)
    reader = SpoolReader(tmp_path)
    entries = reader.read(1000)
    assert [entry.seq for entry in entries[:6]] == [1, 2, 3, 4, 5, int(second.stem)]
    assert entries[-1].seq == 60
    assert reader.lost == 60 - len(entries) == int(second.stem) - 6


def test_a_damaged_cursor_is_named(tmp_path: Path) -> None:
    (tmp_path / "cursor").write_text("x")
    with pytest.raises(SpoolError, match="cursor is damaged"):
        SpoolReader(tmp_path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="cannot be opened"):
        SpoolWriter(tmp_path / "file" / "spool")


def test_a_disk_without_space_is_no_room_and_leaves_no_torn_record(tmp_path: Path) -> None:
    writer = small(tmp_path)
    writer.append(b"a")
    kept, writer._file = writer._file, os.open("/dev/full", os.O_WRONLY)
    assert not writer.append(b"b")
    os.close(writer._file)
    writer._file = kept
    assert writer.append(b"c")
    writer.close()
    assert everything(tmp_path) == [b"a", b"c"]


def test_what_was_taken_survives_a_kill(tmp_path: Path) -> None:
    """kill -9 while it writes: every record whose `append` returned is there, and only whole records are."""
    for round_ in range(3):
        directory = tmp_path / str(round_)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_UNTIL_KILLED, str(directory)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        told = 0
        for line in process.stdout:
            told = int(line)
            if told >= 400 + round_ * 37:
                break
        os.kill(process.pid, signal.SIGKILL)
        told = max([told, *map(int, process.stdout.read().split("\n")[:-1])])
        process.wait()
        SpoolWriter(directory).close()
        payloads = everything(directory)
        assert len(payloads) >= told
        assert payloads == [b"%d:" % n + b"x" * (n % 700) for n in range(1, len(payloads) + 1)]


def test_a_segment_that_the_reader_removes_while_room_is_looked_for_takes_none(tmp_path: Path) -> None:
    now = 100.0
    with small(tmp_path, clock=lambda: now) as writer:
        fill(writer)
        (tmp_path / f"{0:020d}.wal").symlink_to(tmp_path / "gone")  # listed, and not there
        now += 10
        assert writer.has_room(1000) is False
