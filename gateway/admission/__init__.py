"""Admission: every call and every permission request is checked here before it begins.

1. `admission.py`: the single entrance for calls and permission requests.
2. `gate.py`: asks `policy.gate` with what this process knows, and tells operators the answer.
3. `overload.py`: decides whether the gateway as a whole can take on more work.
4. `permission_requests.py`: sends an allowed request once. `decision_log.py`: records each answer with its figures.
"""
