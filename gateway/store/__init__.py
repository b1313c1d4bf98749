"""Persistent data in PostgreSQL, behind one protocol.

1. `records.py`: everything that is stored, as values. `store.py`: `Store`, the protocol that other rooms use.
2. `group_commit.py`: writes share transactions; nothing is lost in a short database outage.
3. `rows.py`, `postgres.py`, `queries.py`, `sql/`: conversion of records to rows, connections, and the statements.
4. `migrations.py`: brings the schema up to date at start. `retention.py`: deletes old rows.
5. `embedded.py`: a PostgreSQL of our own, for when `DATABASE_URL` is not set.

In a longer outage, webhooks wait in the spool, which belongs to `intake`.
"""
