"""A simulated Meta: Graph API, signed webhooks, media relay and WhatsApp users. It stands alone.

How to read this package, in this order:

1. `config.py`, `state.py`, `errors.py`: what a simulated world is made of, its records, and Graph's error codes.
2. `rules.py`, `messages.py`, `calls.py`: Meta's limits per contact, permissions and messages, and the life of a call.
3. `payloads.py`, `webhooks.py`: the JSON of webhooks, and their signed delivery.
4. `graph.py`, `settings.py`, `sdp.py`: the Graph endpoints, the calling settings, and the checks of the business's SDP.
5. `relay.py`, `webrtc_user.py`, `silent_user.py`: the ICE-lite media relay, users with audio, users without.
6. `faults.py`, `control.py`, `page/`: faults on demand, the `/sim/` endpoints, and the page that acts as a user.
7. `meta_sim.py`: `MetaSim`, which puts all of it together. Start here to use it in a test.
"""
