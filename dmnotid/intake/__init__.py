"""Knows sockets, and reads datagrams from them.

Must not know what a datagram means.
"""
