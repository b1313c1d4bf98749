"""What softphones and users of the REST API are told: one set of shapes for both.

1. `messages.py`: the messages of `calls.v1` and the shapes in them, as structs. OpenAPI and JSON Schema come from them.
2. `views.py`: records and decisions as these shapes, with the words that operators read.
"""
