-- A call that Meta may still think alive is marked until Meta has confirmed its end; idempotency keys can be found by age.

alter table calls add column end_owed boolean not null default false;
comment on column calls.end_owed is 'Meta has not confirmed that the call is over, and is told until it has';
create index calls_end_owed on calls (created_at) where end_owed;

create index idempotency_created_at on idempotency (created_at);
