-- The journal, the calls, the contacts with their facts, the gate's decisions, and the keys of repeated requests.
--
-- Instants are timestamptz and come from the gateway; now() is for audit columns (`stored_at`) only. Words of ours are
-- checked, words of Meta's are not: an unknown one must not cost us the row.

create table events (
    seq             bigserial   primary key,
    phone_number_id text        not null,
    dedupe_key      text        not null,
    kind            text        not null,
    received_at     timestamptz not null,
    body            bytea       not null,
    stored_at       timestamptz not null default now(),
    constraint events_once unique (phone_number_id, dedupe_key)
);
create index events_received_at on events (received_at);
comment on table events is 'Journal: every change of every webhook delivery, once';
comment on column events.phone_number_id is 'Empty where the event names no business number';
comment on column events.body is 'The JSON exactly as it came; bytea because jsonb refuses some valid JSON (U+0000)';

create table calls (
    call_id         text        primary key,
    version         bigint      not null,
    phone_number_id text        not null,
    direction       text        not null,
    state           text        not null,
    wa_id           text,
    user_id         text,
    user_name       text,
    created_at      timestamptz not null,
    meta_call_id    text,
    operator        text,
    ringing_at      timestamptz,
    accepted_at     timestamptz,
    ended_at        timestamptz,
    result          text,
    reason          text,
    detail          text,
    meta_status     text,
    meta_start_at   timestamptz,
    meta_end_at     timestamptz,
    duration_s      integer,
    leg_stats       jsonb       not null default '{}',
    stored_at       timestamptz not null default now(),
    constraint calls_user check (wa_id is not null or user_id is not null),
    constraint calls_direction check (direction in ('USER_INITIATED', 'BUSINESS_INITIATED')),
    constraint calls_result check (
        result in ('completed', 'refused', 'user', 'operator', 'gateway', 'meta', 'indeterminate')
    ),
    constraint calls_reason check (
        reason in (
            'hung_up_by_user', 'hung_up_by_operator', 'operator_gone', 'not_answered', 'no_operator', 'declined',
            'cancelled', 'policy', 'no_slot', 'sdp_refused', 'media_failed', 'media_timeout', 'worker_died',
            'graph_error', 'meta_failed', 'timeout', 'drained', 'internal'
        )
    )
);
-- One Meta call can touch two of our numbers, when one of them calls the other.
create unique index calls_meta_call on calls (meta_call_id, phone_number_id) where meta_call_id is not null;
create index calls_recent on calls (phone_number_id, created_at desc);
create index calls_of_operator on calls (operator, created_at desc) where operator is not null;
create index calls_unfinished on calls (created_at) where state <> 'ended';
comment on column calls.version is 'Counts the steps of the call; the highest wins, whatever the order of arrival';
comment on column calls.state is 'gateway.call.CallState; ''ended'' is final, anything else after a start is a crash''s';
comment on column calls.user_id is 'Meta''s business-scoped user id';
comment on column calls.duration_s is 'Meta''s figure, from `terminate`; null: never picked up';
comment on column calls.stored_at is 'Audit: when this version was stored';

create table contacts (
    contact_id      text        primary key,
    phone_number_id text        not null,
    wa_id           text,
    user_id         text,
    name            text,
    state           jsonb       not null,
    seen_at         timestamptz not null,
    stored_at       timestamptz not null default now(),
    constraint contacts_user check (wa_id is not null or user_id is not null)
);
create unique index contacts_user_id on contacts (phone_number_id, user_id) where user_id is not null;
-- Not unique: numbers change hands.
create index contacts_wa_id on contacts (phone_number_id, wa_id) where wa_id is not null;
comment on table contacts is 'A WhatsApp user as one business number knows them';
comment on column contacts.state is 'Snapshot of the folded facts; written in one transaction with them';

create table facts (
    seq        bigserial   primary key,
    contact_id text        not null references contacts on delete cascade,
    key        text        not null,
    at         timestamptz not null,
    fact       jsonb       not null,
    stored_at  timestamptz not null default now(),
    constraint facts_once unique (contact_id, key)
);
create index facts_in_order on facts (contact_id, at, seq);
comment on table facts is 'What the policy counts, append-only';

create table decisions (
    decision_id     text        primary key,
    phone_number_id text        not null,
    user_key        text        not null,
    asked_by        text        not null,
    request         text        not null,
    at              timestamptz not null,
    allowed         boolean     not null,
    pack            text        not null,
    refusal         jsonb,
    stored_at       timestamptz not null default now(),
    constraint decisions_request check (request in ('place', 'receive', 'ask_permission')),
    constraint decisions_refusal check (allowed = (refusal is null))
);
create index decisions_recent on decisions (phone_number_id, at desc);
create index decisions_of_user on decisions (phone_number_id, user_key, at desc);

create table idempotency (
    key         text        primary key,
    fingerprint text        not null,
    response    jsonb,
    created_at  timestamptz not null
);
comment on column idempotency.fingerprint is 'Hash of the request; the same key with another one is a conflict';
comment on column idempotency.response is 'Null: the first request is still under way, or was lost in a crash';
