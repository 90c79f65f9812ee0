"""Mimi and Moshi in PyTorch: stateless modules, explicit streaming state."""
