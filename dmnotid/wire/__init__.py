"""Octets <-> values: WSP's Push PDU and the DM Notification package. No clock, no configuration, no I/O."""
