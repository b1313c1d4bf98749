"""The signalling gateway: one asyncio process between Meta, operators, the rules and the media workers.

`README.md` beside this file follows a call through the rooms. From the bottom up they are: `common`, `config`, `meta`,
`callflow`, `store`, `wire`, `numbers`, `contacts`, `calls`, `operators`, `admission`, `intake`, `softphone`, `http`.
Each says in its `__init__.py` what it is for, and `tests/test_architecture.py` which others it may use.

Beside the rooms: `__main__.py` is the command line, `app.py` the life of a gateway, `wiring.py` makes the parts and
hands them to each other, `shutdown.py` is how a gateway is asked to stop, `bench.py` measures the gate.

Never imports aiortc or av: ICE, DTLS, SRTP and codecs run in the media workers.
"""
