"""The contacts of each number, and the facts about them that the gate needs.

1. `directory.py`: `Contacts`, one `Contact` per person, in memory and in the store. Facts are folded here.
2. `webhook_facts.py`, `refusal_facts.py`: the facts that a webhook, or a refusal by Meta, contains.
3. `engagements.py`: calls and permission requests under way with a contact.
4. `drift.py`, `reconciler.py`: where Meta's records differ from ours, and when Meta is asked.
5. `refold.py`: folds all facts again, for `gateway rebuild`.

`policy.contact` defines what the facts mean.
"""
