"""The spool's file: SQLite on one connection. Every method blocks; `intake.spool` calls all of them from one thread.

* `synchronous=FULL` and a rollback journal that is kept (`PERSIST`): when `append` returns, the data is on disk. Not
  WAL: on a full disk its checkpoint finds no room, and then nothing can be deleted either.
* `max_page_count` bounds the size. Empty pages are used again, and cut off when no delivery is left.
* To delete, SQLite writes its journal, and a full disk has no room for that. Then a small reserve file is deleted
  first, so that emptying the spool always makes room.
* A damaged file is moved aside and a new one begun. A person can still recover its contents with SQLite's tools.
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
#: How many refused deliveries are kept for a person to look at.
REFUSED_KEPT: Final = 1_000
#: The largest body and its overhead.
LARGEST_BYTES: Final = 4_000_000
#: How long a process that is being killed may still hold the lock of the file.
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
    seq: int = 0  #: its place in the spool; 0: not in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The contents of the file in figures."""

    deliveries: int = 0
    bodies_bytes: int = 0
    last_seq: int = 0  #: of the deliveries that were in the file when it was opened; 0: none
    refused: int = 0


class SpoolFile:
    """The file. Any method opens it if needed, also again after an error. Methods raise SpoolDown."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder.expanduser().absolute()
        self._path, self._reserve = self._folder / FILE, self._folder / RESERVE
        self._max_bytes = max_bytes
        self._db: sqlite3.Connection | None = None
        self.held = Held()

    def open(self) -> None:
        """Open or create the file, and count its contents."""
        self._transact(lambda db: None)

    def probe(self) -> None:
        """Try to write; return if there is room."""

        def write(db: sqlite3.Connection) -> None:
            added = db.execute("insert into deliveries (received_us, body) values (0, zeroblob(65536))")
            db.execute("delete from deliveries where seq = ?", (added.lastrowid,))

        self._transact(write)

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Return when all deliveries are on disk; after an error none of them is."""
        rows = [(_microseconds(each.received_at), each.body) for each in deliveries]
        self._transact(lambda db: db.executemany("insert into deliveries (received_us, body) values (?, ?)", rows))
        self._add_to_held(deliveries, 1)

    def oldest(self, limit: int, limit_bytes: int) -> list[Delivery]:
        """Return the oldest deliveries: at least one, if there is one."""

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

        return self._transact(read)

    def remove(self, deliveries: Sequence[Delivery]) -> None:
        """Remove deliveries; each must be in the file."""
        gone = [(each.seq,) for each in deliveries]
        self._transact(lambda db: db.executemany("delete from deliveries where seq = ?", gone), to_make_room=True)
        self._add_to_held(deliveries, -1)
        if self.held.deliveries == 0:
            self._shrink()

    def refuse(self, delivery: Delivery, reason: str) -> None:
        """Move a delivery to the refused ones, for a person to look at; it need not be in the file."""

        def move(db: sqlite3.Connection) -> None:
            db.execute("delete from deliveries where seq = ?", (delivery.seq,))
            row = (_microseconds(delivery.received_at), reason, delivery.body)
            db.execute("insert into refused (received_us, reason, body) values (?, ?, ?)", row)
            db.execute("delete from refused where seq <= (select max(seq) from refused) - ?", (REFUSED_KEPT,))

        self._transact(move, to_make_room=True)
        self._add_to_held([delivery] if delivery.seq else [], -1)
        self.held = replace(self.held, refused=min(REFUSED_KEPT, self.held.refused + 1))

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    def _add_to_held(self, deliveries: Sequence[Delivery], sign: int) -> None:
        size = sum(len(each.body) for each in deliveries)
        self.held = replace(
            self.held,
            deliveries=self.held.deliveries + sign * len(deliveries),
            bodies_bytes=self.held.bodies_bytes + sign * size,
        )

    # --- one transaction ---------------------------------------------------------------------------

    def _transact(self, work: Callable[[sqlite3.Connection], T], *, to_make_room: bool = False) -> T:
        """Do `work` in a transaction of its own. Raises: SpoolDown."""
        while True:
            try:
                if self._db is None:
                    self._db = self._open_database()
                self._db.execute("begin immediate")
                result = work(self._db)
                self._db.execute("commit")
            except sqlite3.Error as error:
                words = self._describe_error(error)
                full = _code(error) == sqlite3.SQLITE_FULL
                self._roll_back(keep=full)
                if _code(error) in _DAMAGED and self._move_aside():
                    continue
                if full and to_make_room and self._delete_reserve():
                    continue
                raise SpoolDown(words) from error
            except OSError as error:
                self.close()
                raise SpoolDown(f"the folder {self._folder} cannot be used: {error.strerror}") from error
            else:
                return result

    def _roll_back(self, *, keep: bool) -> None:
        """Roll back. Close the connection unless `keep`, so that the next transaction opens the file anew."""
        if keep and self._db is not None:
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("rollback")
                return
        self.close()  # the transaction goes with it

    def _open_database(self) -> sqlite3.Connection:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        db = sqlite3.connect(self._path, isolation_level=None, timeout=LOCK_WAIT_S)
        try:
            self._set_up(db)
        except BaseException:
            db.close()
            raise
        self._create_reserve()
        return db

    def _set_up(self, db: sqlite3.Connection) -> None:
        db.execute("pragma locking_mode = exclusive")  # one gateway per folder
        db.execute("pragma auto_vacuum = incremental")
        db.execute("pragma journal_mode = persist").fetchall()
        db.execute("pragma synchronous = full")
        db.execute("pragma secure_delete = off")  # otherwise deleting writes as much as it deletes, even on a full disk
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
        self.held = _read_held(db)

    # --- room --------------------------------------------------------------------------------------

    def _create_reserve(self) -> None:
        with suppress(OSError):  # no room now; tried again when the spool is empty
            if not self._reserve.exists():
                self._reserve.write_bytes(b"\0" * RESERVE_BYTES)

    def _delete_reserve(self) -> bool:
        """Delete the reserve; return whether there was one."""
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def _shrink(self) -> None:
        """Shrink the file, now that it holds no delivery, and create the reserve again."""
        with suppress(sqlite3.Error):
            if self._db is not None:
                self._db.executescript("pragma incremental_vacuum")  # `execute` frees one page only
        self._create_reserve()

    def _move_aside(self) -> bool:
        """Move a damaged file aside; return whether that worked."""
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

    def _describe_error(self, error: sqlite3.Error) -> str:
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
        """Tell whether it is the spool's own limit that was reached, and not the end of the disk."""
        if self._db is None:
            return False
        if shutil.disk_usage(self._folder).free > LARGEST_BYTES:
            return True
        with suppress(sqlite3.Error):
            (pages,) = self._db.execute("pragma page_count").fetchone()
            (most,) = self._db.execute("pragma max_page_count").fetchone()
            return bool(pages * 10 >= most * 9)
        return False


def _read_held(db: sqlite3.Connection) -> Held:
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
