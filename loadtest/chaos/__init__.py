"""Break things on purpose and check the promises (`python -m loadtest chaos`).

How to read this package, in this order:

1. `rows.py`: runs the rows of the reliability table, one after the other, and writes the report.
2. `kills.py`: a seeded schedule of kills and restarts, and how long each recovery took.

The rows themselves are tests: `tests/chaos/test_row_NN_*.py`. Each row states one promise, breaks something (a killed
process, a full spool, a lost network, hostile input) and measures whether the promise was kept. They run on loopback
and need a checkout with the development dependencies.
"""
