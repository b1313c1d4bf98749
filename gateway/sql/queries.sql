-- Every statement of the store, by name. Parameters are listed in the order of gateway/sql/rows.py.

-- name: insert_event
insert into events (phone_number_id, dedupe_key, kind, received_at, body)
values ($1, $2, $3, $4, $5)
on conflict do nothing;

-- name: save_call
-- The highest version wins. What Meta said is only ever filled in: a `terminate`, or that the user declined, may have
-- come in between.
insert into calls as old (
    call_id, version, phone_number_id, direction, state, wa_id, user_id, user_name, created_at, meta_call_id, operator,
    ringing_at, accepted_at, ended_at, result, reason, detail, meta_status, meta_start_at, meta_end_at, duration_s,
    leg_stats
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
on conflict (call_id) do update set
    version = excluded.version,
    phone_number_id = excluded.phone_number_id,
    direction = excluded.direction,
    state = excluded.state,
    wa_id = excluded.wa_id,
    user_id = excluded.user_id,
    user_name = excluded.user_name,
    created_at = excluded.created_at,
    meta_call_id = coalesce(excluded.meta_call_id, old.meta_call_id),
    operator = excluded.operator,
    ringing_at = excluded.ringing_at,
    accepted_at = excluded.accepted_at,
    ended_at = excluded.ended_at,
    result = excluded.result,
    reason = case
        when old.reason = 'declined' and excluded.reason = 'not_answered' then old.reason
        else excluded.reason
    end,
    detail = excluded.detail,
    meta_status = coalesce(excluded.meta_status, old.meta_status),
    meta_start_at = coalesce(excluded.meta_start_at, old.meta_start_at),
    meta_end_at = coalesce(excluded.meta_end_at, old.meta_end_at),
    duration_s = coalesce(excluded.duration_s, old.duration_s),
    leg_stats = excluded.leg_stats,
    stored_at = now()
where old.version < excluded.version;

-- name: mark_declined
update calls set reason = 'declined', stored_at = now()
where meta_call_id = $1 and direction = 'BUSINESS_INITIATED' and result = 'user' and reason = 'not_answered';

-- name: mark_end_owed
update calls set
    end_owed = $2,
    meta_call_id = coalesce(meta_call_id, $3::text),
    stored_at = now()
where call_id = $1;

-- name: fill_terminate
update calls set
    meta_status = coalesce(meta_status, $2::text),
    meta_start_at = coalesce(meta_start_at, $3::timestamptz),
    meta_end_at = coalesce(meta_end_at, $4::timestamptz),
    duration_s = coalesce(duration_s, $5::integer),
    stored_at = now()
where meta_call_id = $1;

-- name: save_contact
-- A BSUID stays; a number may be lost to somebody else.
insert into contacts as old (contact_id, phone_number_id, wa_id, user_id, name, state, seen_at)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (contact_id) do update set
    wa_id = excluded.wa_id,
    user_id = coalesce(excluded.user_id, old.user_id),
    name = coalesce(excluded.name, old.name),
    state = excluded.state,
    seen_at = greatest(excluded.seen_at, old.seen_at),
    stored_at = now();

-- name: insert_fact
-- Of two with one key the later instant stays, as in the fold: see policy/contact.py.
insert into facts as old (contact_id, key, at, fact)
values ($1, $2, $3, $4)
on conflict (contact_id, key) do update set at = excluded.at, fact = excluded.fact, stored_at = now()
where old.at < excluded.at;

-- name: drop_older_facts
-- What both contacts ($1 is kept, $2 goes) know under one key is kept as `insert_fact` does.
delete from facts as old
using facts as new
where old.contact_id = $1 and new.contact_id = $2 and new.key = old.key and old.at < new.at;

-- name: move_facts
update facts as moved set contact_id = $1
where contact_id = $2
    and not exists (select from facts as kept where kept.contact_id = $1 and kept.key = moved.key);

-- name: drop_contact
delete from contacts where contact_id = $1;

-- name: insert_decision
insert into decisions (decision_id, phone_number_id, user_key, asked_by, request, at, allowed, pack, refusal)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (decision_id) do nothing;

-- name: save_number
insert into numbers (phone_number_id, state, updated_at)
values ($1, $2, $3)
on conflict (phone_number_id) do update set
    state = excluded.state,
    updated_at = excluded.updated_at,
    stored_at = now();

-- name: find_contact
-- The BSUID first; by number only where that is no other person's (numbers change hands), the latest one then.
select contact_id, phone_number_id, wa_id, user_id, name, state, seen_at
from contacts
where phone_number_id = $1
    and (user_id = $2::text or (wa_id = $3::text and ($2::text is null or user_id is null)))
order by (user_id = $2::text) desc nulls last, seen_at desc
limit 1;

-- name: find_contacts
-- Who has the BSUID, then who has the number and no BSUID, then who has the number and another BSUID.
select contact_id, phone_number_id, wa_id, user_id, name, state, seen_at
from contacts
where phone_number_id = $1 and (user_id = $2::text or wa_id = $3::text)
order by user_id is distinct from $2::text, user_id is not null, seen_at desc, contact_id;

-- name: facts
select contact_id, key, at, fact from facts where contact_id = $1 order by at, seq;

-- name: count_contacts
select count(*) from contacts;

-- name: contacts_after
-- Page by page through everybody, along the primary key.
select contact_id, phone_number_id, wa_id, user_id, name, state, seen_at
from contacts
where contact_id > $1
order by contact_id
limit $2;

-- name: facts_of_contacts
select contact_id, key, at, fact from facts where contact_id = any($1::text[]) order by contact_id, at, seq;

-- name: correct_snapshot
-- Only if it is still what was compared.
update contacts set state = $3, stored_at = now() where contact_id = $1 and state = $2 returning contact_id;

-- name: other_gateways
select count(*)
from pg_stat_activity
where application_name = $1 and datname = current_database() and pid <> pg_backend_pid();

-- name: call
select * from calls where call_id = $1;

-- name: call_by_meta_id
select * from calls where meta_call_id = $1 order by created_at desc limit 1;

-- name: recent_calls
-- A lateral read for each number: each is the head of one index.
select c.*
from unnest($1::text[]) as n (id)
cross join lateral (
    select * from calls where phone_number_id = n.id order by created_at desc limit $2
) as c
order by c.created_at desc, c.call_id
limit $2;

-- name: recent_calls_of_operator
select *
from calls
where operator = $3 and phone_number_id = any($1::text[])
order by created_at desc, call_id
limit $2;

-- name: unfinished_calls
select * from calls where state <> 'ended' or end_owed order by created_at, call_id;

-- name: decisions
select decision_id, phone_number_id, user_key, asked_by, request, at, allowed, pack, refusal
from decisions
where phone_number_id = $1
order by at desc, decision_id
limit $2;

-- name: decisions_of_user
select decision_id, phone_number_id, user_key, asked_by, request, at, allowed, pack, refusal
from decisions
where phone_number_id = $1 and user_key = $3
order by at desc, decision_id
limit $2;

-- name: recent_event_keys
select distinct dedupe_key from events where received_at >= $1;

-- name: known_events
select dedupe_key from events where phone_number_id = $1 and dedupe_key = any($2::text[]);

-- name: forget_events
delete from events where seq in (select seq from events where received_at < $1 order by received_at limit $2)
returning seq;

-- name: forget_idempotency
delete from idempotency
where key in (select key from idempotency where created_at < $1 order by created_at limit $2)
returning key;

-- name: claim_idempotency
-- A row comes back if the key is ours now: it is new, or so old ($4) that it may be used again.
insert into idempotency as old (key, fingerprint, created_at)
values ($1, $2, $3)
on conflict (key) do update set
    fingerprint = excluded.fingerprint,
    response = null,
    created_at = excluded.created_at
where old.created_at <= $4
returning key;

-- name: find_idempotency
select fingerprint, response from idempotency where key = $1;

-- name: save_idempotency
update idempotency set response = $3 where key = $1 and fingerprint = $2;

-- name: numbers
select phone_number_id, state, updated_at from numbers;

-- name: placed_calls
-- A call counts if Meta took it, or may have: the answer is still to come, or never came.
select phone_number_id, created_at
from calls
where phone_number_id = any($1::text[])
    and direction = 'BUSINESS_INITIATED'
    and created_at > $2
    and (meta_call_id is not null or result is null or result = 'indeterminate')
order by created_at;

-- name: schema_version
select max(version) from schema_migrations;
