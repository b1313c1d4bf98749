"""Small helpers that every other package here may use.

How to read this package, in this order:

1. `guard.py`: refuses every host that is not loopback, so that no simulated traffic leaves this machine by mistake.
2. `clock.py`: the wall clock of the simulated world, which a test can move, and the clock for measuring.
3. `background.py`: tasks that outlive the coroutine that spawned them, in one owned TaskGroup.
4. `stopping.py`: Ctrl-C: stop, clean up, and still write the report.

It imports nothing of its siblings.
"""
