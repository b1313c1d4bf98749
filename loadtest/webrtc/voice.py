"""What a simulated person sends and receives on one leg: paced RTP out, measurements of RTP in.

`Talker` sends a packet every 20 ms of real time from a loop timer (no task, no thread). `Ear` counts every packet and
decodes a short stretch now and then. Neither knows ICE, DTLS or SDP.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from loadtest.common.clock import Clock
from loadtest.webrtc.audio import (
    PACKET_S,
    QUIET,
    SAMPLES_PER_PACKET,
    STRETCH_PACKETS,
    OpusDecoder,
    Sound,
    analyse,
    silence_packet,
    tone_packets,
)
from loadtest.webrtc.rtp import Payloads, RtpPacket, SenderCounts, build_rtp, dtmf_digit, dtmf_payload, sender_report

_MAX_BURST = 10  # later than this many packets: leave a gap instead of catching up
_REPORT_EVERY = 125  # packets between two sender reports: 2.5 s
_DTMF_TICKS, _DTMF_END_TICKS, _DTMF_PAUSE_TICKS = 6, 3, 4
_DTMF_UNITS_PER_TICK = 160  # 20 ms at 8 kHz
_ECHO_PACKETS: Final = 250


@dataclass(slots=True)
class Ear:
    """Measure the RTP of one leg. `now` is loop time in seconds throughout."""

    payloads: Payloads
    #: Seconds between two audio measurements; None: count only.
    every_s: float | None = 0.25
    packets: int = 0
    audio_packets: int = 0
    octets: int = 0
    lost: int = 0
    rtcp_packets: int = 0
    unexpected: int = 0
    digits: str = ""
    first_audio_at: float | None = None
    last_at: float | None = None
    longest_gap_s: float = 0.0
    jitter_s: float = 0.0
    ssrcs: set[int] = field(default_factory=set)
    sound: Sound = QUIET
    loudest_dbfs: float = QUIET.level_dbfs
    #: (loop time, sound) of the last measurements, oldest first.
    sounds: deque[tuple[float, Sound]] = field(default_factory=lambda: deque(maxlen=240))
    _next_look_at: float = 0.0
    _stretch: list[bytes] = field(default_factory=list)
    _decoder: OpusDecoder | None = None
    _last_sequence: int | None = None
    _last_transit: float | None = None
    _digit_timestamp: int | None = None

    def hear(self, packet: RtpPacket, *, now: float) -> None:
        """Count one packet, and measure the audio if a measurement is due."""
        self.packets += 1
        self.octets += len(packet.payload)
        self.ssrcs.add(packet.ssrc)
        self._count_sequence(packet)
        if packet.payload_type == self.payloads.dtmf:
            self._hear_digit(packet)
        elif packet.payload_type == self.payloads.opus:
            self._hear_audio(packet, now)
        else:
            self.unexpected += 1

    def hear_rtcp(self, *, now: float) -> None:
        """Count one RTCP packet: it is enough to keep a silent call alive."""
        self.rtcp_packets += 1
        self.last_at = now

    def _count_sequence(self, packet: RtpPacket) -> None:
        if self._last_sequence is not None:
            step = (packet.sequence - self._last_sequence) & 0xFFFF
            if step == 0 or step >= 0x8000:
                return
            if step < 1000:
                self.lost += step - 1
        self._last_sequence = packet.sequence

    def _hear_digit(self, packet: RtpPacket) -> None:
        digit = dtmf_digit(packet.payload)
        if digit is not None and packet.timestamp != self._digit_timestamp:
            self._digit_timestamp = packet.timestamp
            self.digits += digit

    def _hear_audio(self, packet: RtpPacket, now: float) -> None:
        self.audio_packets += 1
        if self.first_audio_at is None:
            self.first_audio_at = self._next_look_at = now
        if self.last_at is not None:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last_at)
        self.last_at = now
        transit = now - packet.timestamp / 48_000
        if self._last_transit is not None:  # RFC 3550 §6.4.1
            difference = abs(transit - self._last_transit)
            if difference < 5:  # larger: the sender restarted its timestamps
                self.jitter_s += (difference - self.jitter_s) / 16
        self._last_transit = transit
        if self.every_s is not None and now >= self._next_look_at:
            self._look(packet.payload, now)

    def _look(self, payload: bytes, now: float) -> None:
        self._stretch.append(payload)
        if len(self._stretch) < STRETCH_PACKETS:
            return
        if self._decoder is None:
            self._decoder = OpusDecoder()
        samples = [sample for packet in self._stretch for sample in self._decoder.decode(packet)]
        self._stretch.clear()
        self.sound = analyse(samples)
        self.loudest_dbfs = max(self.loudest_dbfs, self.sound.level_dbfs)
        self.sounds.append((now, self.sound))
        self._next_look_at = now + (self.every_s or 0.0)

    def measured(self) -> dict[str, Any]:
        """Return the measurements, for JSON."""
        tone = self.sound.tone_hz
        return {
            "packets": self.packets,
            "audio_packets": self.audio_packets,
            "octets": self.octets,
            "lost": self.lost,
            "rtcp_packets": self.rtcp_packets,
            "unexpected_payloads": self.unexpected,
            "ssrcs": len(self.ssrcs),
            "digits": self.digits,
            "jitter_ms": round(self.jitter_s * 1e3, 2),
            "longest_gap_ms": round(self.longest_gap_s * 1e3, 1),
            "level_dbfs": round(self.sound.level_dbfs, 1),
            "loudest_dbfs": round(self.loudest_dbfs, 1),
            "tone_hz": None if tone is None else round(tone, 1),
            "tone_purity": round(self.sound.purity, 3),
        }

    def hears_tone(self, hz: float, *, tolerance_hz: float = 15.0) -> bool:
        """Return whether the last measurement was (mostly) this tone."""
        tone = self.sound.tone_hz
        return tone is not None and abs(tone - hz) <= tolerance_hz and self.sound.purity > 0.7


class Talker:
    """Send a tone, an echo or digits as RTP in real time through `send`.

    `send_rtcp` gets sender reports. Between `start()` and `stop()` one packet is sent every 20 ms.
    """

    def __init__(
        self,
        *,
        send: Callable[[bytes], None],
        send_rtcp: Callable[[bytes], None],
        tone_hz: int | None,
        clock: Clock,
        ssrc: int,
        payloads: Payloads | None = None,
    ) -> None:
        self._send, self._send_rtcp, self._clock = send, send_rtcp, clock
        self._tone = tone_packets(tone_hz) if tone_hz else ()
        self.payloads = payloads or Payloads()
        self.ssrc = ssrc
        self.sent = 0
        self._octets = 0
        self._sequence = random.getrandbits(15)
        self._timestamp = random.getrandbits(31)
        self._tick_number = 0
        self._due = 0.0
        self._timer: asyncio.Handle | None = None
        self._marker = True
        self._echo_s: float | None = None
        self._echoing = False
        self._echo: deque[tuple[float, bytes]] = deque(maxlen=_ECHO_PACKETS)
        self._keys: deque[tuple[bytes, bool, int] | None] = deque()

    @property
    def talking(self) -> bool:
        """Whether packets are being sent."""
        return self._timer is not None

    def start(self) -> None:
        """Start sending now; if already sending, do nothing."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._due, self._marker = loop.time(), True
            self._timer = loop.call_soon(self._tick)

    def stop(self) -> None:
        """Stop sending."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def echo_after(self, delay_s: float | None) -> None:
        """Echo the payloads given to `repeat()`, `delay_s` later; None: send the tone only."""
        self._echo_s = delay_s
        self._echoing = False
        self._echo.clear()

    def repeat(self, payload: bytes, *, now: float) -> None:
        """Take one received Opus packet for the echo."""
        if self._echo_s is not None:
            self._echo.append((now + self._echo_s, payload))

    def press(self, digits: Iterable[str]) -> None:
        """Queue telephone-event digits (RFC 4733); they replace the audio while they last.

        Raises: ValueError if any character is not a digit; in that case none is queued.
        """
        plan: list[tuple[bytes, bool, int] | None] = []
        for digit in digits:
            for tick in range(_DTMF_TICKS):
                payload = dtmf_payload(digit, duration=(tick + 1) * _DTMF_UNITS_PER_TICK, end=False)
                plan.append((payload, tick == 0, tick))
            last = dtmf_payload(digit, duration=_DTMF_TICKS * _DTMF_UNITS_PER_TICK, end=True)
            plan += [(last, False, _DTMF_TICKS + tick) for tick in range(_DTMF_END_TICKS)]
            plan += [None] * _DTMF_PAUSE_TICKS
        self._keys.extend(plan)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        behind = int((now - self._due) / PACKET_S)
        if behind > _MAX_BURST:
            self._skip(behind)
        while self._due <= now:
            self._send_next(now)
            self._due += PACKET_S
        self._timer = loop.call_at(self._due, self._tick)

    def _skip(self, packets: int) -> None:
        """Leave a gap in the timestamps: a phone that is late loses audio instead of sending a burst."""
        self._due += packets * PACKET_S
        self._timestamp = (self._timestamp + packets * SAMPLES_PER_PACKET) & 0xFFFFFFFF

    def _send_next(self, now: float) -> None:
        key = self._keys.popleft() if self._keys else None
        if key is not None and self.payloads.dtmf is not None:
            payload, marker, tick = key
            # The event's timestamp is its start, on the audio's clock, as in libwebrtc.
            started = self._timestamp - tick * SAMPLES_PER_PACKET
            self._emit(self.payloads.dtmf, payload, marker=marker, timestamp=started)
        else:
            payload = self._next_sound(now)
            if payload:
                self._emit(self.payloads.opus, payload, marker=self._marker, timestamp=self._timestamp)
                self._marker = False
        self._timestamp = (self._timestamp + SAMPLES_PER_PACKET) & 0xFFFFFFFF
        self._tick_number += 1
        if self._tick_number % _REPORT_EVERY == 1:
            self._report()

    def _next_sound(self, now: float) -> bytes:
        if self._echo and (self._echoing or self._echo[0][0] <= now):
            self._echoing = True  # from here on the echo alone: the tone in its gaps would spoil both measurements
            return self._echo.popleft()[1]
        if self._echoing:
            return silence_packet()
        return self._tone[self._tick_number % len(self._tone)] if self._tone else b""

    def _emit(self, payload_type: int, payload: bytes, *, marker: bool, timestamp: int) -> None:
        packet = RtpPacket(
            payload_type=payload_type,
            sequence=self._sequence,
            timestamp=timestamp & 0xFFFFFFFF,
            ssrc=self.ssrc,
            marker=marker,
            payload=payload,
        )
        self._sequence = (self._sequence + 1) & 0xFFFF
        self.sent += 1
        self._octets += len(payload)
        self._send(build_rtp(packet))

    def _report(self) -> None:
        counts = SenderCounts(ssrc=self.ssrc, rtp_timestamp=self._timestamp, packets=self.sent, octets=self._octets)
        self._send_rtcp(sender_report(counts, now=self._clock(), cname="simulated"))
