-- A call can also end because the gateway had too much to do when it came, or because its record cannot be kept: then
-- nothing leaves for Meta.

alter table calls drop constraint calls_reason;
alter table calls add constraint calls_reason check (
    reason in (
        'hung_up_by_user', 'hung_up_by_operator', 'operator_gone', 'not_answered', 'no_operator', 'declined',
        'cancelled', 'policy', 'no_slot', 'overload', 'store_down', 'sdp_refused', 'media_failed', 'media_timeout',
        'worker_died', 'graph_error', 'meta_failed', 'timeout', 'drained', 'internal'
    )
);
