-- Everything that the writer writes goes through one function: a transaction is one statement then, and one round trip.
-- `changes` holds the rows of each kind under its name, see gateway/sql/rows.py; what is missing there has no rows.
--
-- Rows that replace others are taken one by one, as they came: one batch may hold several for one key. Each kind finds
-- what it refers to: facts their contact, a merge both, an ending its call. A merge may come after all saves: who is
-- absorbed has no BSUID, so that no two ever share one. A changed function is a new migration; processes of the version
-- before go on calling it, so it must still take what they give.

create function save_changes(changes jsonb) returns void language plpgsql as $$
declare
    given record;
begin
    insert into events (phone_number_id, dedupe_key, kind, received_at, body)
    select phone_number_id, dedupe_key, kind, received_at, body
    from jsonb_populate_recordset(null::events, changes -> 'events')
    on conflict do nothing;

    -- A BSUID stays; a number may be lost to somebody else.
    for given in select * from jsonb_populate_recordset(null::contacts, changes -> 'contacts') loop
        insert into contacts as old (contact_id, phone_number_id, wa_id, user_id, name, state, seen_at)
        values (
            given.contact_id, given.phone_number_id, given.wa_id, given.user_id, given.name, given.state, given.seen_at
        )
        on conflict (contact_id) do update set
            wa_id = excluded.wa_id,
            user_id = coalesce(excluded.user_id, old.user_id),
            name = coalesce(excluded.name, old.name),
            state = excluded.state,
            seen_at = greatest(excluded.seen_at, old.seen_at),
            stored_at = now();
    end loop;

    -- Of two with one key the later instant stays, as in the fold: see policy/contact.py.
    for given in select * from jsonb_populate_recordset(null::facts, changes -> 'facts') loop
        insert into facts as old (contact_id, key, at, fact)
        values (given.contact_id, given.key, given.at, given.fact)
        on conflict (contact_id, key) do update set at = excluded.at, fact = excluded.fact, stored_at = now()
        where old.at < excluded.at;
    end loop;

    -- What both contacts know under one key is kept as with facts that are saved.
    for given in select * from jsonb_to_recordset(changes -> 'merges') as merge (kept text, absorbed text) loop
        delete from facts as old
        using facts as new
        where old.contact_id = given.kept and new.contact_id = given.absorbed and new.key = old.key and old.at < new.at;

        update facts as moved set contact_id = given.kept
        where contact_id = given.absorbed
            and not exists (select from facts as kept where kept.contact_id = given.kept and kept.key = moved.key);

        delete from contacts where contact_id = given.absorbed;
    end loop;

    -- The highest version wins. What Meta said is only ever filled in: a `terminate`, or that the user declined, may
    -- have come in between.
    for given in select * from jsonb_populate_recordset(null::calls, changes -> 'calls') loop
        insert into calls as old (
            call_id, version, phone_number_id, direction, state, wa_id, user_id, user_name, created_at, meta_call_id,
            operator, ringing_at, accepted_at, ended_at, result, reason, detail, meta_status, meta_start_at,
            meta_end_at, duration_s, leg_stats
        )
        values (
            given.call_id, given.version, given.phone_number_id, given.direction, given.state, given.wa_id,
            given.user_id, given.user_name, given.created_at, given.meta_call_id, given.operator, given.ringing_at,
            given.accepted_at, given.ended_at, given.result, given.reason, given.detail, given.meta_status,
            given.meta_start_at, given.meta_end_at, given.duration_s, given.leg_stats
        )
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
    end loop;

    for given in
        select * from jsonb_to_recordset(changes -> 'endings') as ending (call_id text, owed boolean, meta_call_id text)
    loop
        update calls set
            end_owed = given.owed,
            meta_call_id = coalesce(meta_call_id, given.meta_call_id),
            stored_at = now()
        where call_id = given.call_id;
    end loop;

    for given in select * from jsonb_populate_recordset(null::calls, changes -> 'terminates') loop
        update calls set
            meta_status = coalesce(meta_status, given.meta_status),
            meta_start_at = coalesce(meta_start_at, given.meta_start_at),
            meta_end_at = coalesce(meta_end_at, given.meta_end_at),
            duration_s = coalesce(duration_s, given.duration_s),
            stored_at = now()
        where meta_call_id = given.meta_call_id;
    end loop;

    for given in select * from jsonb_to_recordset(changes -> 'declines') as decline (meta_call_id text) loop
        update calls set reason = 'declined', stored_at = now()
        where meta_call_id = given.meta_call_id
            and direction = 'BUSINESS_INITIATED' and result = 'user' and reason = 'not_answered';
    end loop;

    insert into decisions (decision_id, phone_number_id, user_key, asked_by, request, at, allowed, pack, refusal)
    select decision_id, phone_number_id, user_key, asked_by, request, at, allowed, pack, refusal
    from jsonb_populate_recordset(null::decisions, changes -> 'decisions')
    on conflict do nothing;

    for given in select * from jsonb_populate_recordset(null::numbers, changes -> 'numbers') loop
        insert into numbers (phone_number_id, state, updated_at)
        values (given.phone_number_id, given.state, given.updated_at)
        on conflict (phone_number_id) do update set
            state = excluded.state,
            updated_at = excluded.updated_at,
            stored_at = now();
    end loop;
end
$$;
comment on function save_changes is 'Every write but idempotency keys, deletions and corrections';
