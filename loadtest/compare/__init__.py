"""This gateway beside alternatives, in one run on one machine (`python -m loadtest compare`).

How to read this package, in this order:

1. `contest.py`, `results.py`: what a part of the comparison consists of, and its results as values.
2. `peers.py`, `environments.py`, `programs/`: the compared programs, and the environment that each one runs in.
3. `setups.py`: the part "calls": user-initiated set-ups. `desk.py`: Meta's side of it, which delivers webhooks by hand.
4. `probes.py`: the correctness score: batches, duplicates, missing fields, bad signatures.
5. `media.py`, `media_peers.py`, `rtpengine.py`: the part "media": calls carried on one core.
6. `run.py`, `page.py`: all rounds in turn, the checks, and the report.
"""
