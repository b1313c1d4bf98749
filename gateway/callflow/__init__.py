"""One call as values: its states, what can happen to it, and what it asks for then. Pure throughout.

1. `call.py`: the states and inputs, and the tables that say which input moves which state.
2. `step.py`: `step(call, input) -> (call, effects)`, the only function that changes a call.
3. `effects.py`: what a step can ask for.
4. `outcome.py`: how a call ends, in the words of records, metrics and pages.

Nothing here waits, sends or reads a clock. `calls` carries out what this package decides.
"""
