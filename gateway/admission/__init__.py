"""Who gets in: the gate's question, the decision that is kept, and room for one more call.

1. `admission.py`: the one door to calls and permission requests.
2. `gate.py`: asks `policy.gate` with what this process knows, and tells operators what it answers.
3. `overload.py`: whether the gateway as a whole can take on more.
4. `permission_requests.py`: sends what was allowed, once. `decision_log.py`: keeps each answer with its figures.
"""
