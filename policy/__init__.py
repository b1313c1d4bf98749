"""The rules of WhatsApp calling as pure functions: which calls and permission requests are allowed, and from when.

How to read this package, in this order:

1. `reasons.py`, `decision.py`: the answers. `Allow`, or a `Refusal` that explains itself.
2. `facts.py`: what can happen to a contact, as values.
3. `contact.py`: how facts, in any order and any number of times, become one small `ContactState`.
4. `windows.py`, `permission.py`, `hours.py`: what such a state means at an instant.
5. `pack.py`, `packs/*.toml`: the limits as dated data with their sources.
6. `number.py`, `request.py`: the other two inputs of the rules.
7. `rules.py`, `gate.py`: the rules in order, and `evaluate`, the one function that decides. `overview.py` calls it
   for everything that a page shows at once.

Nothing here waits, reads a clock, logs or keeps state. Every instant is an aware `datetime` in UTC and is passed in as
an argument. The one file access is `pack.load_pack`, which reads the packs that are part of this package.
"""
