"""Knows what any Linux daemon needs: log, service manager, trusted paths.

Must not know what a notification is.
"""
