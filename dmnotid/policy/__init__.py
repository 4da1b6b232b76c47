"""Decisions: what this device's rules say of a decoded notification. Time is an argument; no I/O."""
