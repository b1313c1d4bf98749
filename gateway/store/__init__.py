"""What is kept: in PostgreSQL, through one protocol.

1. `records.py`: everything that can be kept, as values. `store.py`: `Store`, what the rest of the program asks for.
2. `group_commit.py`: writes share transactions; nothing is lost while the database is away for a moment.
3. `rows.py`, `postgres.py`, `queries.py`, `sql/`: records as rows, connections, and the statements.
4. `migrations.py`: brings the schema up to date at the start. `retention.py`: forgets what is old.
5. `embedded.py`: a PostgreSQL of our own, where no `DATABASE_URL` names one.

While the database is away longer, webhooks wait in the spool, which belongs to `intake`.
"""
