"""The people who answer: who is logged in, whose phone rings, and what all of them are told.

1. `phone.py`: one operator's login. `ring_policy.py`: whose phones ring for a call, as a pure function.
2. `hub.py`: all phones, their audio paths, and the calls that ring.
3. `broadcast.py`, `slot_feed.py`: telling many phones something without holding the loop.
4. `media_events.py`: what the media plane reports, handed to the call or the phone.

The WebSocket itself is in `softphone`.
"""
