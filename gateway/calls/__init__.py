"""Live calls: each has one driver, which feeds it inputs and performs its effects.

1. `starter.py`: begins calls. `context.py`: what each call is given.
2. `driver.py`: one call's loop, timer, record and slot. `performer.py`: its effects as requests to Meta and to media.
3. `registry.py`: which calls are alive, which have ended, and which webhooks wait for a call that is not known yet.
4. `refusals.py`: what a refusal by Meta tells about a contact.

Calls that have no driver:

5. `overflow.py`: calls that there was no room for.
6. `owed_hangups.py`: calls that Meta may still consider alive. `recovery.py`: calls that a crash left.

What a call does next is decided in `callflow`.
"""
