"""Text from elsewhere on a terminal. A module of its own, because `dmnotid status` imports little."""


def printable(text: str) -> str:
    """Return text with everything escaped that a terminal would interpret."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
