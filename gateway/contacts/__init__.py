"""The WhatsApp users that each number knows, and what the gate needs to know of them.

1. `directory.py`: `Contacts`, one `Contact` a person, in memory and behind it the store. Facts are folded here.
2. `webhook_facts.py`, `refusal_facts.py`: which facts a webhook, or a refusal of Meta's, tells.
3. `engagements.py`: calls and requests that are under way with a contact.
4. `drift.py`, `reconciler.py`: where Meta's records contradict ours, and when Meta is asked.
5. `refold.py`: folds all facts again, for `gateway rebuild`.

What facts mean is in `policy.contact`.
"""
