"""Knows how to take pushes that came by SMS from a telephony daemon, and to hand them to the daemon's push door.

Each bearer is a process of its own, and the only part that may use D-Bus. Must not know the daemon's configuration, nor
how a push is judged.
"""
