"""Live calls: each has one driver, which feeds it inputs and performs what it asks for.

1. `starter.py`: begins calls. `context.py`: what each is given.
2. `driver.py`: one call's loop, timer, record and slot. `performer.py`: its effects as requests to Meta and media.
3. `registry.py`: who is alive, who has ended, and which webhooks wait for a call that is not known yet.
4. `refusals.py`: what a refusal of Meta's teaches.

Calls that no driver runs:

5. `overflow.py`: those that there was no room for.
6. `owed_hangups.py`: those that Meta may still think alive. `recovery.py`: those that a crash left.

What a call does next is decided in `callflow`.
"""
