"""SRTP of one leg: its four operations as plain functions. All use of pylibsrtp's internals is in this file.

A `pylibsrtp.Session` allocates a length for every packet and has its own buffer. Here both are shared by all legs of a
process, which handles one packet at a time, and so stay in the CPU cache. Written for pylibsrtp 1.0.0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pylibsrtp
from pylibsrtp._binding import ffi, lib

WRITTEN_FOR_PYLIBSRTP: Final = "1.0.0"

#: Larger than any datagram on an Ethernet path; longer ones are refused.
_ROOM: Final = 1_500
#: Most bytes that protecting adds (SRTP_MAX_SRTCP_TRAILER_LEN is the larger of the two).
_TRAILER: Final = pylibsrtp.SRTP_MAX_SRTCP_TRAILER_LEN
_packet: Final = ffi.new("char[]", _ROOM + _TRAILER)
_bytes: Final = ffi.buffer(_packet)
_length: Final = ffi.new("int *")

Operation = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class SrtpKeys:
    """The four SRTP operations of a leg; they raise pylibsrtp.Error or ValueError on bad input."""

    protect: Operation
    unprotect: Operation
    protect_rtcp: Operation
    unprotect_rtcp: Operation
    profile: str


def srtp_keys(*, received: pylibsrtp.Session, sent: pylibsrtp.Session, profile: str) -> SrtpKeys:
    """Return the operations of two sessions."""
    return SrtpKeys(
        protect=_operation(lib.srtp_protect, sent),
        unprotect=_operation(lib.srtp_unprotect, received),
        protect_rtcp=_operation(lib.srtp_protect_rtcp, sent),
        unprotect_rtcp=_operation(lib.srtp_unprotect_rtcp, received),
        profile=profile,
    )


def _operation(function: Callable[[Any, Any, Any], int], session: pylibsrtp.Session) -> Operation:
    owner = session._srtp  # frees the context when the last reference is gone
    context = owner[0]

    def operate(data: bytes, owner: object = owner) -> bytes:
        size = _length[0] = len(data)
        if size > _ROOM:
            raise ValueError("packet is too long")
        _bytes[0:size] = data
        if status := function(context, _packet, _length):
            raise pylibsrtp.Error(pylibsrtp.ERRORS[status])
        result: bytes = _bytes[0 : _length[0]]
        return result

    return operate
