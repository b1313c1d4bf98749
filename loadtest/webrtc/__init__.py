"""The media of simulated people: full ICE, DTLS-SRTP, and Opus in real time. It shares no code with `media/`.

How to read this package, in this order:

1. `rtp.py`: RTP, RTCP and telephone-event packets as bytes. Pure.
2. `audio.py`: Opus tones to send, and the measurement of what is received.
3. `voice.py`: `Talker` sends paced RTP, `Ear` measures received RTP.
4. `full_ice.py`, `dtls_leg.py`: the transport, with all use of aioice's and aiortc's private attributes.
5. `browser_peer.py`: all of it together as a browser's side of a call.

Meta's side of a call is in `simulator/webrtc_user.py`, because it is ICE-lite and shares one UDP port.
"""
