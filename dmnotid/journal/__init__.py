"""Knows one durable table, which is the queue and the duplicate memory at once.

Must not know how a session is started.
"""
