"""Draws docs/pictures/ways.svg, with colours for light and dark pages, from the text beside it. `make docs` runs it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

SOURCE: Final = Path(__file__).parents[2] / "docs/pictures/ways.txt"
PICTURE: Final = SOURCE.with_suffix(".svg")

LINE: Final = 19
"""Height of a line of text, in pixels."""

HEAD: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 945 380" width="945" height="380" role="img">
  <title>How a notification becomes a DM session</title>
  <desc>The DM server sends a signed notification in one datagram. dmnotid, on the device, receives it on UDP port 2948,
    checks server, signature, age and duplicates, and writes it to a journal on disk, or discards it with a reason. The
    session waits for its turn and for a network of the type that the server prefers. Then dmnotid starts your hook,
    and your DM client runs the DM session with the server.</desc>
  <style>
    text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
    .name { font-weight: 600; font-size: 14px }
    .middle { text-anchor: middle }
    .page { fill: #ffffff; stroke: #d0d7de }
    .frame { fill: #f6f8fa; stroke: #8c959f }
    .box { fill: #ddebf9; stroke: #3b6ea5 }
    .arrow { stroke: #3b6ea5; stroke-width: 1.5 }
    .point { fill: #3b6ea5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .page { fill: #0d1117; stroke: #30363d }
      .frame { fill: #161b22; stroke: #6e7681 }
      .box { fill: #1c3149; stroke: #6ea8e0 }
      .arrow { stroke: #6ea8e0 }
      .point { fill: #6ea8e0 }
    }
  </style>
  <defs>
    <marker id="point" markerWidth="9" markerHeight="8" refX="9" refY="4" orient="auto" markerUnits="userSpaceOnUse">
      <path class="point" d="M0,0 L9,4 L0,8 z"/>
    </marker>
  </defs>
  <rect class="page" x="0.5" y="0.5" width="944" height="379" rx="8"/>
"""


def draw(source: str) -> str:
    """Return the picture that a text describes; its first lines explain the words."""
    return HEAD + "".join(f"  {shape}\n" for line in source.splitlines() for shape in shapes(line)) + "</svg>\n"


def shapes(line: str) -> Iterator[str]:
    """Draw one line of the text."""
    if not line or line.startswith("#"):
        return
    word, *rest = line.split()
    count = 2 if word == "text" else 4
    x, y, *size = map(int, rest[:count])
    lines = " ".join(rest[count:]).split(" | ")
    if word == "arrow":
        yield f'<line class="arrow" x1="{x}" y1="{y}" x2="{size[0]}" y2="{size[1]}" marker-end="url(#point)"/>'
        return
    if word in ("box", "frame"):
        yield f'<rect class="{word}" x="{x}" y="{y}" width="{size[0]}" height="{size[1]}" rx="6"/>'
    if word == "box":
        # Lines begin so that all of them are in the middle of the box.
        x, y = x + size[0] // 2, y + (size[1] - LINE * len(lines)) // 2 + 14
    elif word == "frame":
        x, y = x + 15, y + 26
    for at, text in enumerate(lines):
        names = ["name"] * (word != "text" and at == 0) + ["middle"] * (word == "box")
        kind = f' class="{" ".join(names)}"' if names else ""
        yield f'<text{kind} x="{x}" y="{y + at * LINE}">{escape(text)}</text>'
