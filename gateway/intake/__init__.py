"""Webhooks from Meta, from the port to their call, and kept before they are acknowledged.

1. `webhook.py`: size, time and signature. Only what Meta signed goes on.
2. `intake.py`: 200 only once the delivery is in the database, or else in the spool.
3. `inbox.py`: each event once, to its call, its contact or its number. `dedupe.py`: which events have been here.
4. `spool.py`, `spool_file.py`: deliveries on disk while the database is away. `replay.py`: brings them back.
"""
