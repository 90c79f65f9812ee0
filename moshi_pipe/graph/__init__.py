"""The wiring: formats, ports, nodes, links and the static schedule. Nothing heavy is imported here."""
