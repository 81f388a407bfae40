"""A bounded queue of records on disk: one process appends, one (perhaps another) reads and acknowledges.

Append-only segments of framed records. What `append` took survives the death of the process (it is in the kernel's page
cache) and, after the next `sync`, the death of the machine. Knows nothing of what a record says.
"""

import fcntl
import itertools
import os
import re
import secrets
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

__all__ = ["FRAME_BYTES", "SEGMENT_SUFFIX", "Entry", "SpoolError", "SpoolReader", "SpoolWriter", "read_id", "unshipped"]

# length of the payload, CRC-32 of sequence number and payload, sequence number; little-endian
_HEAD: Final = struct.Struct("<IIQ")
_pack, _crc32 = _HEAD.pack, zlib.crc32  # two of each for every call
_LARGEST_RECORD: Final = 1 << 20
FRAME_BYTES: Final = _HEAD.size
SEGMENT_SUFFIX: Final = ".wal"
_RESCAN_SECONDS: Final = 0.5  # how often a full spool looks whether the reader made room


class SpoolError(Exception):
    """The spool cannot be used; the message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record. `seq` counts from 1 without holes; a hole in what a reader sees is a loss that it can count."""

    seq: int
    payload: bytes


def _frame(seq: int, payload: bytes) -> bytes:
    return _pack(len(payload), _crc32(payload, _crc32(seq.to_bytes(8, "little"))), seq) + payload


def _frames(data: bytes, start: int = 0) -> Iterator[tuple[Entry, int]]:
    """The whole, undamaged frames of a segment from `start`, each with the offset after it; ends at the first other."""
    offset = start
    while offset + _HEAD.size <= len(data):
        length, crc, seq = _HEAD.unpack_from(data, offset)
        end = offset + _HEAD.size + length
        payload = data[offset + _HEAD.size : end]
        if length > _LARGEST_RECORD or end > len(data) or _frame(seq, payload)[4:8] != crc.to_bytes(4, "little"):
            return
        yield Entry(seq, payload), end
        offset = end


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{SEGMENT_SUFFIX}"))


def _segment(directory: Path, first: int) -> Path:
    return directory / f"{first:020d}{SEGMENT_SUFFIX}"


def _size(segment: Path) -> int:
    try:
        return segment.stat().st_size
    except FileNotFoundError:  # the reader is done with it, since it was listed
        return 0


def _first(segment: Path) -> int:
    return int(segment.stem)


class SpoolWriter:
    """The appending end. Never waits for the disk but in `sync`, which is for a thread.

    `most_bytes` bounds all segments together; the last `reserve` bytes, a quarter at most, are only for
    `append(urgent=True)`: the ends of what was begun while there was room.
    """

    def __init__(
        self,
        directory: Path,
        *,
        most_bytes: int = 256 << 20,
        segment_bytes: int = 8 << 20,
        reserve: int = 1 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or create. Raises SpoolError, also when another process appends here."""
        self._directory = directory
        self._most, self._segment_bytes = most_bytes, min(segment_bytes, most_bytes // 4)
        self._reserve = min(reserve, most_bytes // 4)
        self._clock, self._next_scan = clock, 0.0
        self._finished: list[int] = []
        self.torn_bytes = 0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"the audit spool {directory} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.id = _made_id(directory)
            self._recover()
        except BlockingIOError as error:
            os.close(self._lock)
            raise SpoolError(f"the audit spool {directory} is in use by another gateway: give each its own") from error
        except OSError as error:
            os.close(self._lock)
            raise SpoolError(f"the audit spool {directory} cannot be read: {error.strerror}") from error

    def _recover(self) -> None:
        """Continue after the last whole record; a torn or damaged tail of the last segment is cut off."""
        segments = _segments(self._directory)
        self._used = sum(segment.stat().st_size for segment in segments)
        cursor = _read_cursor(self._directory)
        self._seq = max(cursor.seq, _first(segments[-1]) - 1 if segments else 0)
        self._synced = cursor.seq
        if not segments:
            self._open_segment()
            return
        last = segments[-1]
        data = last.read_bytes()
        self._size = 0
        for entry, end in _frames(data):
            self._seq, self._size = max(self._seq, entry.seq), end
        self.torn_bytes = len(data) - self._size
        self._file = os.open(last, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        if self.torn_bytes:
            os.ftruncate(self._file, self._size)
            self._used -= self.torn_bytes
        self._dirty = True

    def _open_segment(self) -> None:
        path = _segment(self._directory, self._seq + 1)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size, self._dirty = 0, True

    @property
    def seq(self) -> int:
        """The number of the last record."""
        return self._seq

    @property
    def synced(self) -> int:
        """The number of the last record that the death of the machine cannot undo: what may be told to others.

        A number that others have seen must not be given to another record afterwards.
        """
        return self._synced

    def renew_id(self) -> None:
        """Make this another spool to those who remember its id: its numbers say something else to them."""
        self.id = _make_id(self._directory)

    @property
    def used(self) -> int:
        """Bytes on disk, as far as this end knows: the reader may have made room since."""
        return self._used

    def append(self, *payloads: bytes, urgent: bool = False) -> bool:
        """Take records, all or none. False: no room, here or on the disk, and nothing was written."""
        frame, seq = b"", self._seq
        for payload in payloads:
            if len(payload) > _LARGEST_RECORD:
                raise SpoolError(f"a record of {len(payload)} bytes: at most {_LARGEST_RECORD} fit")
            seq += 1
            frame += _frame(seq, payload)
        size = len(frame)
        if self._used + size > self._most - self._reserve and not self.has_room(size, urgent):
            return False
        try:
            if self._size + size > self._segment_bytes and self._size:
                self._rotate()
            written = os.write(self._file, frame)
        except OSError:  # no space, quota, a failing disk: to the caller all of them are "no room"
            written = 0
        if written != size:
            if written:
                os.ftruncate(self._file, self._size)
            return False
        self._seq = seq
        self._size += size
        self._used += size
        self._dirty = True
        return True

    def has_room(self, size: int, urgent: bool = False) -> bool:
        """Would frames of `size` bytes altogether be taken?"""
        limit = self._most if urgent else self._most - self._reserve
        if self._used + size <= limit:
            return True
        now = self._clock()
        if now < self._next_scan:
            return False
        self._next_scan = now + _RESCAN_SECONDS
        self._used = sum(map(_size, _segments(self._directory)))
        return self._used + size <= limit

    def _rotate(self) -> None:
        finished = self._file
        self._open_segment()
        self._finished.append(finished)  # `sync` waits for the disk, not the call that is recorded here

    def sync(self) -> None:
        """Wait until everything that was appended is on the disk. For a thread. Raises OSError when the disk fails."""
        if not self._dirty:
            return
        self._dirty, through = False, self._seq
        try:
            self._sync_files()
        except OSError:
            self._dirty = True
            raise
        self._synced = through

    def _sync_files(self) -> None:
        os.fsync(self._file)  # before the finished ones: what is current now may be one of them in a moment
        while self._finished:
            finished = self._finished.pop()
            try:
                os.fsync(finished)
            finally:
                os.close(finished)
        _sync_directory(self._directory)  # the name of a new segment must survive as its content does

    def close(self) -> None:
        """Sync and let go."""
        try:
            self.sync()
        finally:
            os.close(self._file)
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _made_id(directory: Path) -> str:
    try:
        return read_id(directory)
    except SpoolError:  # none yet, or not one that could be told
        return _make_id(directory)


def _make_id(directory: Path) -> str:
    fresh, made = directory / "id.new", secrets.token_hex(16)
    with fresh.open("w") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(directory / "id")
    _sync_directory(directory)
    return made


def read_id(directory: Path) -> str:
    """What tells this spool from any other, of any host. Raises SpoolError when there is none."""
    try:
        found = (directory / "id").read_text()
    except OSError as error:
        raise SpoolError(f"the audit spool {directory} has no readable id: {error.strerror}") from error
    if not re.fullmatch(r"[0-9a-f]{32}", found):
        raise SpoolError(f"{directory / 'id'} is damaged: remove it, and a new one is made")
    return found


@dataclass(frozen=True, slots=True)
class _Cursor:
    seq: int  # the last record that was acknowledged


def _read_cursor(directory: Path) -> _Cursor:
    path = directory / "cursor"
    try:
        return _Cursor(int(path.read_text()))
    except FileNotFoundError:
        return _Cursor(0)
    except ValueError as error:
        raise SpoolError(f"{path} is damaged: remove it, and records that were shipped already ship again") from error


class SpoolReader:
    """The shipping end: reads in order, acknowledges what arrived, removes segments that are done with.

    Every record is read at least once; what was read and not acknowledged is read again after a restart. `lost` counts
    records that were written and cannot be read any more (a damaged segment).
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._acknowledged = _read_cursor(directory).seq
        self._seq = self._acknowledged
        self._place: tuple[Path, int] | None = None
        self.lost = 0

    @property
    def acknowledged(self) -> int:
        """The number of the last record that arrived."""
        return self._acknowledged

    def read(self, most: int = 500, through: int | None = None) -> list[Entry]:
        """The next records, at most `most` and none beyond number `through`; empty when there are none yet."""
        found: list[Entry] = []
        segments = _segments(self._directory)
        for number, segment in enumerate(segments):
            following = _first(segments[number + 1]) if number + 1 < len(segments) else None
            if following is not None and following <= self._seq + 1:
                continue
            for entry, end in self._read_segment(segment):
                if through is not None and entry.seq > through:
                    return found
                self._place = segment, end
                if entry.seq <= self._seq:
                    continue
                self.lost += entry.seq - self._seq - 1
                self._seq = entry.seq
                found.append(entry)
                if len(found) == most:
                    return found
            if following is not None and self._seq + 1 < following:
                # The rest of a segment that is finished is unreadable: say how much, and go on behind it.
                self.lost += following - 1 - self._seq
                self._seq = following - 1
        return found

    def _read_segment(self, segment: Path) -> Iterator[tuple[Entry, int]]:
        start = self._place[1] if self._place and self._place[0] == segment else 0
        with segment.open("rb") as file:
            file.seek(start)
            data = file.read()
        for entry, end in _frames(data):
            yield entry, start + end

    def acknowledge(self, seq: int) -> None:
        """Records up to `seq` arrived. Segments with nothing else are removed, but never the one in use."""
        if not self._acknowledged <= seq <= self._seq:
            raise SpoolError(f"record {seq} was not read here: read up to {self._seq}")
        self._acknowledged = seq
        temporary = self._directory / "cursor.new"
        with temporary.open("w") as file:
            file.write(str(seq))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._directory / "cursor")
        segments = _segments(self._directory)
        for segment, following in itertools.pairwise(segments):
            if _first(following) <= seq + 1:
                segment.unlink()
            else:
                break

    def rewind(self) -> None:
        """Read again from the first record that was not acknowledged."""
        self._seq, self._place = self._acknowledged, None


def unshipped(spools: Path) -> int:
    """How many records the spools in `spools` hold that nobody acknowledged, as far as they can be read."""
    if not spools.is_dir():
        return 0
    return sum(_unshipped(directory) for directory in spools.iterdir() if directory.is_dir())


def _unshipped(directory: Path) -> int:
    try:
        return len(SpoolReader(directory).read(most=sys.maxsize))
    except SpoolError:
        return len([entry for segment in _segments(directory) for entry, _ in _frames(segment.read_bytes())])
