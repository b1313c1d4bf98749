"""A simulated Meta, simulated users and operators, and the suites that load, compare and break a gateway.

Nothing here imports gateway, policy or media: a mistake shared by both sides would hide itself.

How to read this package, in this order:

1. `simulator/`: Meta on this machine. It stands alone: `python -m loadtest simulate`.
2. `webrtc/`, `net/`, `common/`: media, network clients and fault proxies, and small helpers; used by all others.
3. `operators/`: simulated softphones, with and without audio.
4. `measure/`: a whole gateway as a process, what is measured of it, and the reports.
5. `loads/`, `compare/`, `chaos/`: the three suites: load scenarios, comparison with other programs, and kills.
6. `demo.py` (`make run`) and `__main__.py`, the command line.
"""
