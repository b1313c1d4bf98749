"""What every room uses and that knows nothing of calls.

1. `ids.py`, `errors.py`: names of things, and the tree of errors that may be shown to a user.
2. `clock.py`: the only reader of the wall clock; Meta's clock where ours is wrong.
3. `rate_limit.py`, `backoff.py`: how many in how long, and when to try again.
4. `background.py`, `single_flight.py`, `shielding.py`: tasks that outlive who asked for them, one for all who ask for
   the same, and cancellation that is not ours.
5. `log.py`, `metrics.py`: one line an event with personal data masked, and the figures.
"""
