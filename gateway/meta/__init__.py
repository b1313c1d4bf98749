"""All that knows Meta's wire format, and nothing of what we do with it.

What Meta sends:

1. `shapes.py`: the JSON of webhooks as structs. `events.py` and `number_events.py` read it as typed events.

What we ask:

2. `graph.py`: `Graph`, every request as a method. `graph_http.py` sends them, and repeats those that may be repeated.
3. `answers.py`, `error_codes.py`: what comes back, and what each error means.
4. `health.py`, `circuit_breaker.py`: whether Meta answers at all, whether it takes our tokens, and what its clock says.
"""
