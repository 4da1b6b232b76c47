"""Knows octets and values, by the specifications alone.

Must not know the device, its configuration or the time.
"""
