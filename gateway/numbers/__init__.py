"""The business numbers that this gateway serves.

1. `number.py`: `Number`, everything about one number: settings, policy pack, facts, slots. `Numbers` finds them by id.
2. `facts.py`: what Meta's settings, webhooks and errors say about a number, folded into one value.
3. `slots.py`: a number's concurrent calls, one semaphore per direction. `placed_calls.py`: the calls it placed in the
   last 24 hours.
4. `monitor.py`: when a number is read from Meta, and who is told about changes.
5. `views.py`: a number as operators see it. `report.py`: a number as `gateway numbers` prints it.
"""
