"""A corpus of conversations, bytes in and bytes out, and what plays it against a server.

``python -m moshi_pipe.server.conformance ws://127.0.0.1:8998``; see ``docs/protocol.md``. The
corpus is the folder ``cases``: what it says is in :mod:`~moshi_pipe.server.conformance.case`.
"""
