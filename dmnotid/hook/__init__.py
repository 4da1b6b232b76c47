"""Knows one run of the session starter.

Must not know which session is next.
"""
