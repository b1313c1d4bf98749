-- A call can also end because the gateway had too much to do when it came.

alter table calls drop constraint calls_reason;
alter table calls add constraint calls_reason check (
    reason in (
        'hung_up_by_user', 'hung_up_by_operator', 'operator_gone', 'not_answered', 'no_operator', 'declined',
        'cancelled', 'policy', 'no_slot', 'overload', 'sdp_refused', 'media_failed', 'media_timeout', 'worker_died',
        'graph_error', 'meta_failed', 'timeout', 'drained', 'internal'
    )
);
