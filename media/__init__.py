"""The media plane: makes legs and joins them. It knows nothing of calls, of Meta's API or of policy.

How to read this package, in this order:

1. `engine.py`: the interface that the gateway uses. `model.py`, `stats.py`, `errors.py`: the values in it.
2. `pool.py`, `frames.py`, `worker.py`: the engine's implementation as worker processes behind a socket pair.
   `null.py`: an engine that carries no media, for measuring signalling.
3. `host.py`, `leg.py`: what runs in a worker; all legs of one process, and the life of one leg.
4. `sdp.py`, `negotiation.py`: offers and answers, as pure functions.
5. `port.py`, `ice.py`, `dtls.py`, `srtp.py`: from the UDP socket to decrypted packets; one file for each library.
6. `bridge.py`, `rtp.py`, `rtcp.py`, `dtmf.py`, `tones.py`: the RTP of a leg, and how two legs hear each other.

The signalling process imports only steps 1 and 2 without `worker.py`, and `sdp.py` and `negotiation.py`: none of these
may import aiortc, aioice or av.
"""
