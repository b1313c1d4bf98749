"""The REST API on the public port, and the private port.

1. `api.py`: the routes and their handlers. `openapi.py`: the OpenAPI document of these routes.
2. `auth.py`: checks keys, and slows down clients that guess them.
3. `problems.py`: errors as RFC 9457 problems. `idempotency.py`: one Idempotency-Key, one effect.
4. `admin.py`: the private port: health, readiness, metrics and version, for those who run the gateway.
"""
