"""Hand each event of the media engine to the call or the phone that it is about."""

import structlog

from gateway.callflow.call import CallInput, InputKind
from gateway.callflow.outcome import EndReason
from gateway.calls.registry import LiveCall, Registry
from gateway.common.ids import CallId
from gateway.common.metrics import Metrics
from gateway.operators.hub import Hub
from gateway.wire import messages as msg
from media.engine import (
    DtmfReceived,
    LegConnected,
    LegFailed,
    LegFailure,
    LegId,
    MediaEvent,
    WorkerDown,
    WorkerUp,
)

log = structlog.get_logger()


class MediaEvents:
    """Receives events from the media engine, in the event loop."""

    def __init__(self, *, registry: Registry, hub: Hub, metrics: Metrics) -> None:
        self._registry = registry
        self._hub = hub
        self._metrics = metrics

    def take(self, event: MediaEvent) -> None:
        """Hand one event on. Must not raise."""
        match event:
            case LegConnected(leg=leg):
                self._hub.leg_connected(leg)
            case LegFailed(leg=leg, reason=reason):
                call = self._call_of(leg)
                if call is not None:
                    call.feed(_input_of_failure(reason))
                else:
                    self._hub.leg_failed(leg, reason.value)
            case DtmfReceived(leg=leg, digit=digit):
                call = self._call_of(leg)
                if call is not None:
                    self._hub.digit(call.call.call_id, digit)
            case WorkerDown(worker=worker):
                self._metrics.media_worker_restarts_total.inc()
                log.error("media_worker_down", worker=worker)
                self._hub.tell_all(msg.Notice(level="warning", code="media_worker_restarted"))
                self._hub.workers_changed()
            case WorkerUp(worker=worker):
                log.info("media_worker_up", worker=worker)
                self._hub.workers_changed()

    def _call_of(self, leg: LegId) -> LiveCall | None:
        call_id, _, side = leg.partition("/")
        return self._registry.get(CallId(call_id)) if side == "meta" else None


def _input_of_failure(reason: LegFailure) -> CallInput:
    if reason is LegFailure.CLOSED_BY_PEER:
        return CallInput(kind=InputKind.META_CLOSING)
    match reason:
        case LegFailure.WORKER_DIED:
            ended = EndReason.WORKER_DIED
        case LegFailure.MEDIA_TIMEOUT:
            ended = EndReason.MEDIA_TIMEOUT
        case _:
            ended = EndReason.MEDIA_FAILED
    return CallInput(kind=InputKind.MEDIA_FAILED, reason=ended, detail=reason.value)
