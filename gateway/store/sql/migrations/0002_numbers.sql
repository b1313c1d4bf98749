-- What is known of the business numbers beyond the settings: read from Meta, told by its webhooks and its errors.

create table numbers (
    phone_number_id text        primary key,
    state           jsonb       not null,
    updated_at      timestamptz not null,
    stored_at       timestamptz not null default now()
);
comment on table numbers is 'What is known of each business number: gateway.number_facts, the latest only';
comment on column numbers.updated_at is 'When the gateway learned it';

-- Calls that a number placed in the last 24 hours.
create index calls_placed on calls (phone_number_id, created_at) where direction = 'BUSINESS_INITIATED';
