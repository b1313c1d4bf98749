"""Basics that every room uses; nothing here knows about calls.

1. `ids.py`, `errors.py`: the types of identifiers, and the tree of errors with texts that may be shown to users.
2. `clock.py`: the only reader of the wall clock; Meta's clock if ours is wrong.
3. `rate_limit.py`, `backoff.py`: rate limits, and the pauses between retries.
4. `background.py`, `single_flight.py`, `shielding.py`: tasks that outlive their caller, one task shared by all callers
   that want the same result, and telling cancellation from failure.
5. `log.py`, `metrics.py`: one log line per event with personal data masked, and the Prometheus metrics.
"""
