"""Simulated Meta, simulated people, and the load suite.

Nothing here imports gateway, policy or media: a mistake shared by both sides would hide itself.
"""
