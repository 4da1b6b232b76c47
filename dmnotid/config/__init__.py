"""Knows one YAML file and the frozen value made of it.

Must not know what the value is used for.
"""
