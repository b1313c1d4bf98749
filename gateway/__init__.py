"""The signalling gateway: webhooks in, Graph requests out, operators rung, every slot and rule kept.

Follow one call by reading `webhook`, `inbox`, `driver`, `call` (the table), `policy.gate`, `graph`, in order.
"""
