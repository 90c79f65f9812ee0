"""The wiring: formats, ports, nodes, links, static schedule. Nothing heavy is imported here."""
