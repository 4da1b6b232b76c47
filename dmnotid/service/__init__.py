"""The machine: sockets, files, processes, signals, log."""
