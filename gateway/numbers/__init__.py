"""The business numbers that this gateway serves.

1. `number.py`: `Number`, all that is known of one: settings, rules, facts, slots. `Numbers` finds them.
2. `facts.py`: what Meta's settings, webhooks and errors say of a number, folded into one value.
3. `slots.py`: a number's concurrent calls, one semaphore a direction. `placed_calls.py`: those of the last 24 hours.
4. `monitor.py`: when Meta is asked about a number, and who is told what changed.
5. `views.py`: a number as operators see it. `report.py`: as `gateway numbers` prints it.
"""
