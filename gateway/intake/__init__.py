"""Webhooks from Meta: from the HTTP request to the call, and durable before they are acknowledged.

1. `webhook.py`: checks size, time and signature. Only what Meta signed goes on.
2. `intake.py`: answers 200 only when the delivery is in the database or, failing that, in the spool.
3. `inbox.py`: applies each event once, to its call, its contact or its number. `dedupe.py`: which events were applied.
4. `spool.py`, `spool_file.py`: deliveries on disk while the database is down. `replay.py`: delivers them afterwards.
"""
