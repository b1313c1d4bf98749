-- Every statement of the store, by name.

-- name: save_changes
-- See migrations/0006_save_changes.sql. Passed as text: the driver's jsonb codec would replace U+0000 in an identifier.
select save_changes($1::text::jsonb);

-- name: find_contact
-- By BSUID first. By number only if the BSUIDs do not differ (numbers get new owners); then the latest contact.
select contact_id, phone_number_id, wa_id, user_id, name, state, seen_at
from contacts
where phone_number_id = $1
    and (user_id = $2::text or (wa_id = $3::text and ($2::text is null or user_id is null)))
order by (user_id = $2::text) desc nulls last, seen_at desc
limit 1;

-- name: find_contacts
-- Contacts with the BSUID, then with the number and no BSUID, then with the number and another BSUID.
select contact_id, phone_number_id, wa_id, user_id, name, state, seen_at
from contacts
where phone_number_id = $1 and (user_id = $2::text or wa_id = $3::text)
order by user_id is distinct from $2::text, user_id is not null, seen_at desc, contact_id;

-- name: facts
select contact_id, key, at, fact from facts where contact_id = $1 order by at, seq;

-- name: count_contacts
select count(*) from contacts;

-- name: contacts_after
-- One page of all contacts, in order of the primary key.
select contact_id, phone_number_id, wa_id, user_id, name, state, seen_at
from contacts
where contact_id > $1
order by contact_id
limit $2;

-- name: facts_of_contacts
select contact_id, key, at, fact from facts where contact_id = any($1::text[]) order by contact_id, at, seq;

-- name: correct_snapshot
-- Only if the state is still the one that was compared.
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
-- A lateral join: for each number it reads only the first rows of one index.
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
-- Returns a row if we hold the key now: it is new, or old enough ($4) to be used again.
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
-- A call counts if Meta accepted it, or may have: its answer is still to come, or never came.
select phone_number_id, created_at
from calls
where phone_number_id = any($1::text[])
    and direction = 'BUSINESS_INITIATED'
    and created_at > $2
    and (meta_call_id is not null or result is null or result = 'indeterminate')
order by created_at;

-- name: schema_version
select max(version) from schema_migrations;
