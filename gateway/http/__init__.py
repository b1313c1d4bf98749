"""The REST API on the public port, and the private port.

1. `api.py`: the routes and their handlers. `openapi.py`: the same, described.
2. `auth.py`: who holds a key, and slowing down who guesses.
3. `problems.py`: errors as RFC 9457 problems. `idempotency.py`: one key, one effect.
4. `admin.py`: health, readiness, metrics and version, for the operator of the gateway alone.
"""
