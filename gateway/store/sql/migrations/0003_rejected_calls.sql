-- A call that was declined on the phone is a fact beside the one that it was not answered, with a key of its own: what
-- Meta tells by two webhooks may come in any order, and the fold sees that both are of one call.

update facts
set key = 'rejected/' || substr(key, length('unanswered/') + 1),
    fact = jsonb_set(fact, '{key}', to_jsonb('rejected/' || substr(key, length('unanswered/') + 1)))
where fact ->> 'kind' = 'call_rejected' and key like 'unanswered/%';
