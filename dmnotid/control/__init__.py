"""Knows how an operator's programs ask the running daemon: the socket, the protocol and its methods.

Must not know how the daemon answers: that is given to it.
"""
