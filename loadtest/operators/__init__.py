"""Simulated operators: softphones that log in, answer, dial, hold and hang up.

How to read this package, in this order:

1. `softphone_wire.py`: the WebSocket protocol `calls.v1` from the operator's side: log in, request, resume.
2. `signalling_bot.py`: operators without audio that act by a policy, and `Crew`, many of them in one process. For
   gateways with `GATEWAY_MEDIA_ENGINE=null`.
3. `softphone_bot.py`: an operator with audio, which does what the browser page does. For end-to-end tests.

It shares no code with the gateway: the message formats are written here a second time.
"""
