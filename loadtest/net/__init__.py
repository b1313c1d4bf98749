"""Network clients that cost little CPU, and proxies that inject faults.

How to read this package, in this order:

1. `http_client.py`: HTTP/1.1 requests to one URL over kept-alive connections; used for webhooks.
2. `websocket.py`: the client side of a WebSocket; used by the simulated operators.
3. `tcp_chaos.py`: a TCP proxy that delays, throttles, stalls, cuts and refuses connections.
4. `udp_chaos.py`: a UDP relay that drops, delays, reorders and duplicates datagrams.

The clients are cheap so that a load generator does not limit what it measures; the proxies are seeded, so that a
failing run can be repeated.
"""
