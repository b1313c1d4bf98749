"""The spool's file: SQLite on one connection. Every method blocks; all of them are called from one thread.

* `synchronous=FULL` and a rollback journal that is kept (`PERSIST`): what `append` returned from is on the disk. Not
  WAL: on a full disk its checkpoint finds no room, and then nothing can be deleted either.
* The size is bounded by `max_page_count`. Pages that were emptied are used again, and cut off once nothing is left.
* To delete, SQLite writes its journal, for which a full disk has no room: a small reserve beside the file is given up
  then, so that draining always makes room.
* A file that is damaged is moved aside and a new one begun. What it held is not lost to a person with SQLite's tools.

Not responsible for threads nor for whose turn it is (see `gateway.intake.spool`).
"""

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

import structlog

from gateway.common.errors import SpoolDown

log = structlog.get_logger(__name__)

T = TypeVar("T")

FILE: Final = "spool.db"
RESERVE: Final = "spool.reserve"
RESERVE_BYTES: Final = 512 * 1024
#: Refused deliveries that are kept for a person to look at.
REFUSED_KEPT: Final = 1_000
#: A body and what goes with it.
LARGEST_BYTES: Final = 4_000_000
#: How long a file may be held by a process that is just being killed.
LOCK_WAIT_S: Final = 1.0

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DELIVERIES: Final = """create table if not exists deliveries
    (seq integer primary key autoincrement, received_us integer not null, body blob not null)"""
_REFUSED: Final = """create table if not exists refused
    (seq integer primary key autoincrement, received_us integer not null, reason text not null, body blob not null)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One webhook body, as Meta signed it."""

    received_at: datetime
    body: bytes
    seq: int = 0  #: its place in line; 0: in none


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the file holds."""

    deliveries: int = 0
    bodies_bytes: int = 0
    last_seq: int = 0  #: of the deliveries that were there when the file was opened; 0: none
    refused: int = 0


class SpoolFile:
    """Opened by whatever is done first, and again after an error that may pass. Methods raise SpoolDown."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder.expanduser().absolute()
        self._path, self._reserve = self._folder / FILE, self._folder / RESERVE
        self._max_bytes = max_bytes
        self._db: sqlite3.Connection | None = None
        self.held = Held()

    def open(self) -> None:
        """Make the file if need be, and see what is in it."""
        self._do(lambda db: None)

    def probe(self) -> None:
        """Return if there is room to write."""

        def write(db: sqlite3.Connection) -> None:
            added = db.execute("insert into deliveries (received_us, body) values (0, zeroblob(65536))")
            db.execute("delete from deliveries where seq = ?", (added.lastrowid,))

        self._do(write)

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Return when all are on the disk; after an error none is."""
        rows = [(_microseconds(each.received_at), each.body) for each in deliveries]
        self._do(lambda db: db.executemany("insert into deliveries (received_us, body) values (?, ?)", rows))
        self._count(deliveries, 1)

    def oldest(self, limit: int, limit_bytes: int) -> list[Delivery]:
        """Return the next in line: one at least, if there is one."""

        def read(db: sqlite3.Connection) -> list[Delivery]:
            found: list[Delivery] = []
            size = 0
            rows = db.execute("select seq, received_us, body from deliveries order by seq limit ?", (limit,))
            for seq, received_us, body in rows:
                size += len(body)
                if found and size > limit_bytes:
                    break
                found.append(Delivery(seq=seq, received_at=_instant(received_us), body=body))
            rows.close()
            return found

        return self._do(read)

    def remove(self, deliveries: Sequence[Delivery]) -> None:
        """Take deliveries out of line; each must stand there."""
        gone = [(each.seq,) for each in deliveries]
        self._do(lambda db: db.executemany("delete from deliveries where seq = ?", gone), to_make_room=True)
        self._count(deliveries, -1)
        if self.held.deliveries == 0:
            self._give_back()

    def refuse(self, delivery: Delivery, reason: str) -> None:
        """Take a delivery out of line, if it stood there, and keep it for a person to look at."""

        def move(db: sqlite3.Connection) -> None:
            db.execute("delete from deliveries where seq = ?", (delivery.seq,))
            row = (_microseconds(delivery.received_at), reason, delivery.body)
            db.execute("insert into refused (received_us, reason, body) values (?, ?, ?)", row)
            db.execute("delete from refused where seq <= (select max(seq) from refused) - ?", (REFUSED_KEPT,))

        self._do(move, to_make_room=True)
        self._count([delivery] if delivery.seq else [], -1)
        self.held = replace(self.held, refused=min(REFUSED_KEPT, self.held.refused + 1))

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    def _count(self, deliveries: Sequence[Delivery], sign: int) -> None:
        size = sum(len(each.body) for each in deliveries)
        self.held = replace(
            self.held,
            deliveries=self.held.deliveries + sign * len(deliveries),
            bodies_bytes=self.held.bodies_bytes + sign * size,
        )

    # --- one transaction ---------------------------------------------------------------------------

    def _do(self, work: Callable[[sqlite3.Connection], T], *, to_make_room: bool = False) -> T:
        """Do `work` in a transaction of its own. Raises: SpoolDown"""
        while True:
            try:
                if self._db is None:
                    self._db = self._opened()
                self._db.execute("begin immediate")
                result = work(self._db)
                self._db.execute("commit")
            except sqlite3.Error as error:
                words = self._in_words(error)
                full = _code(error) == sqlite3.SQLITE_FULL
                self._undo(keep=full)
                if _code(error) in _DAMAGED and self._set_aside():
                    continue
                if full and to_make_room and self._give_up_reserve():
                    continue
                raise SpoolDown(words) from error
            except OSError as error:
                self.close()
                raise SpoolDown(f"the folder {self._folder} cannot be used: {error.strerror}") from error
            else:
                return result

    def _undo(self, *, keep: bool) -> None:
        """Leave nothing half-written. After an error that says little, the next one begins with a fresh look."""
        if keep and self._db is not None:
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("rollback")
                return
        self.close()  # the transaction goes with it

    def _opened(self) -> sqlite3.Connection:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        db = sqlite3.connect(self._path, isolation_level=None, timeout=LOCK_WAIT_S)
        try:
            self._set_up(db)
        except BaseException:
            db.close()
            raise
        self._take_reserve()
        return db

    def _set_up(self, db: sqlite3.Connection) -> None:
        db.execute("pragma locking_mode = exclusive")  # one gateway to a folder
        db.execute("pragma auto_vacuum = incremental")
        db.execute("pragma journal_mode = persist").fetchall()
        db.execute("pragma synchronous = full")
        db.execute("pragma secure_delete = off")  # else deleting writes as much as it deletes, on a full disk, too
        (page_bytes,) = db.execute("pragma page_size").fetchone()
        db.execute(f"pragma max_page_count = {max(8, self._max_bytes // page_bytes)}").fetchall()
        (verdict,) = db.execute("pragma quick_check(1)").fetchone()
        if verdict != "ok":
            damaged = sqlite3.DatabaseError(verdict)
            damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damaged
        db.execute("begin exclusive")
        for statement in (_DELIVERIES, _REFUSED):
            db.execute(statement)
        db.execute("commit")
        self.held = _held(db)

    # --- room --------------------------------------------------------------------------------------

    def _take_reserve(self) -> None:
        with suppress(OSError):  # no room now: perhaps later
            if not self._reserve.exists():
                self._reserve.write_bytes(b"\0" * RESERVE_BYTES)

    def _give_up_reserve(self) -> bool:
        """Return whether there was one."""
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def _give_back(self) -> None:
        """Nothing is in line any more: let the file shrink, and have the reserve again."""
        with suppress(sqlite3.Error):
            if self._db is not None:
                self._db.executescript("pragma incremental_vacuum")  # `execute` frees one page only
        self._take_reserve()

    def _set_aside(self) -> bool:
        """Move a damaged file out of the way; return whether that could be done."""
        self.close()
        number = 1
        while (aside := self._path.with_name(f"{FILE}.damaged-{number}")).exists():
            number += 1
        try:
            self._path.rename(aside)
            with suppress(FileNotFoundError):
                journal = self._path.with_name(f"{FILE}-journal")
                journal.rename(aside.with_name(f"{aside.name}-journal"))
        except OSError:
            return False
        log.error("spool_damaged", moved_to=aside.name)
        return True

    def _in_words(self, error: sqlite3.Error) -> str:
        match _code(error):
            case sqlite3.SQLITE_FULL:
                if self._is_at_limit():
                    return f"the spool is full: {self._max_bytes // 1_000_000} MB (GATEWAY_SPOOL_MAX_MB) are in use"
                return "the disk of the spool is full"
            case sqlite3.SQLITE_BUSY:
                return f"the spool in {self._folder} is in use by another gateway: give each a GATEWAY_DATA_DIR"
            case _:
                return f"the spool in {self._folder} cannot be used: {error}"

    def _is_at_limit(self) -> bool:
        """Tell our own limit from the disk's."""
        if self._db is None:
            return False
        if shutil.disk_usage(self._folder).free > LARGEST_BYTES:
            return True
        with suppress(sqlite3.Error):
            (pages,) = self._db.execute("pragma page_count").fetchone()
            (most,) = self._db.execute("pragma max_page_count").fetchone()
            return bool(pages * 10 >= most * 9)
        return False


def _held(db: sqlite3.Connection) -> Held:
    count, size, last = db.execute("select count(*), sum(length(body)), max(seq) from deliveries").fetchone()
    (refused,) = db.execute("select count(*) from refused").fetchone()
    return Held(deliveries=count, bodies_bytes=size or 0, last_seq=last or 0, refused=refused)


def _code(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary error code."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
