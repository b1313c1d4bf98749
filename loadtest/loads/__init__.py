"""Load scenarios: open-loop load on a whole gateway, with figures and thresholds (`python -m loadtest run`).

How to read this package, in this order:

1. `scenarios.py`, `built_in.py`, `scenario_file.py`: scenarios as data, those that are built in, and those from TOML.
2. `generator.py`: open-loop arrivals: a request's time counts from when it was due.
3. `job.py`: one load on one gateway, step by step. `run.py`: all scenarios of a run, and its report (`page.py`).
4. `calls.py`, `fill.py`, `intake.py`, `soak.py` with `soak_load.py`: the loads without media.
5. `media.py` with `media_plane.py`, `media_ends.py`, `media_pump.py`, `media_talk.py`: calls with real RTP.
6. `gate_bench.py`: the cost of one policy decision (`python -m loadtest gate`).
"""
