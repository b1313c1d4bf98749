"""What softphones and REST clients receive: one set of structs for both.

1. `messages.py`: the messages of `calls.v1` and the views in them, as structs. OpenAPI and JSON Schema are generated
   from them.
2. `views.py`: converts records and decisions to these views, with the sentences that operators read.
"""
