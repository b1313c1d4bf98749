"""The operators' page and its WebSocket.

1. `tickets.py`: access keys, and the one-time tickets that log a softphone in.
2. `server.py`: the WebSocket: login, heartbeat, one answer to each request.
3. `outbox.py`: the messages that go out on one WebSocket, and when a slow reader is disconnected.
4. `page/`: the page, as plain ES modules without a build step. Begin at `app.js`.
"""
