"""dmnotid: receives OMA DM 2.0 notifications and starts the DM sessions they ask for.

`dmnotid.wire` knows octets, `dmnotid.policy` this device's rules, `dmnotid.service` the machine; `dmnotid.cli` is what
people type.
"""

__version__ = "0.1.0"

RELEASED_AT = 1795305600
"""When this version was released (POSIX seconds): a device clock behind it is not believed."""
