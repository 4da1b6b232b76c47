"""Knows the rules by which this device decides; time is an argument.

Must not know how anything is received, stored or started.
"""
