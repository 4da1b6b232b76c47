"""dmnotid receives OMA DM 2.0 notifications and starts the DM sessions that they request.

A datagram goes through `intake`, `wire` and `policy` into the `journal`; `receiver` calls them in that order. A session
goes from the `journal` over `links` to its `hook`; `dispatcher` calls them. `daemon` builds both, and `cli` has the
commands. `bearers` are other processes, which hand in pushes that came by SMS.
"""

__version__ = "0.1.0"

RELEASED_AT = 1795305600
"""The release date of this version (POSIX seconds): a device clock that shows an earlier time is not believed."""
