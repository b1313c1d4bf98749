"""The operators' page and its WebSocket.

1. `tickets.py`: keys, and the one-time tickets that log a softphone in.
2. `server.py`: the WebSocket: login, heartbeat, one answer to each request.
3. `outbox.py`: what goes out on one socket, and when a slow reader is cut off.
4. `page/`: the page: plain ES modules, no build step. Begin at `app.js`.
"""
