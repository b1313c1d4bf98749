"""Meta's wire format: webhooks and the Graph API. Nothing here decides what to do with what Meta says.

Webhooks:

1. `shapes.py`: the webhooks' JSON as structs. `events.py` and `number_events.py` turn it into typed events.

The Graph API:

2. `graph.py`: `Graph`, one method per endpoint. `graph_http.py` sends the requests and retries those that allow it.
3. `answers.py`, `error_codes.py`: the answers as typed values, and what each error code means.
4. `health.py`, `circuit_breaker.py`: whether Meta answers, whether it accepts our tokens, and what its clock says.
"""
