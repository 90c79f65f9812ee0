"""Slots, ticks, clocks, sessions and the rings between engine and edge."""
