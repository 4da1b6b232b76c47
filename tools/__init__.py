"""What maintainers run to release dmnotid: CONTRIBUTING.md. Nothing of it is installed."""
