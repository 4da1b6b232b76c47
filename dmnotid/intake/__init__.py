"""Knows sockets and turns what they hold into datagrams.

Must not know what a datagram means.
"""
