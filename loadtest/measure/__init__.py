"""A whole gateway as a process, what is measured of it, and how results are reported.

How to read this package, in this order:

1. `stack.py`: starts a gateway and a simulated Meta, kills and restarts them. Used by every suite and by the demo.
2. `process.py`: CPU, memory, descriptors and event-loop lag of the gateway's process, and pinning to cores.
3. `invariants.py`: what must be true after any load: nothing is left over, no limit was exceeded.
4. `between_database.py`: a proxy in front of the gateway's PostgreSQL that can delay and stall it.
5. `results.py`, `report.py`, `plots.py`: results as values and JSON, and the parts of an HTML report.

What is done to the gateway is decided in `loads/`, `compare/` and `chaos/`.
"""
