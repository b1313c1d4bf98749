"""The operators: who is logged in, whose phone rings for a call, and what all phones are told.

1. `phone.py`: one operator's login. `ring_policy.py`: which phones ring for a call, as pure functions.
2. `hub.py`: all phones, their audio legs, and the calls that ring.
3. `broadcast.py`, `slot_feed.py`: send to many phones without blocking the event loop.
4. `media_events.py`: hands events of the media engine to the call or the phone.

The WebSocket is in `softphone`, the life of a call in `calls`.
"""
