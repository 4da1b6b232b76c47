"""Knows which connections are up, as the kernel reports them.

Must not know which session wants one.
"""
