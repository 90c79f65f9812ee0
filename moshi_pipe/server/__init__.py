"""Serving conversations over websockets: ``source=websocket sink=websocket``.

The engine's process runs the graph; edge processes hold sockets, TLS, Opus and resampling. They
share lanes of memory and a control channel, and nothing else.
"""
