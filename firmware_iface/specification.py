"""Tables of `PROTOCOL.md` that are printed from the code: `python -m firmware_iface.specification` shows them.

A test compares them with the page, so neither can be changed alone.
"""

from __future__ import annotations

import sys

from firmware_iface import wire
from firmware_iface.states import states_diagram


def register_table() -> str:
    """Return the registers as a Markdown table."""
    lines = ["| Address | Register | Allowed | After power-up | Meaning |", "|---|---|---|---|---|"]
    for name, register in wire.REGISTERS.items():
        is_writable = register.is_writable
        allowed = f"{register.lowest} to {register.highest}" if is_writable else "read only"
        initial = str(register.initial) if is_writable else ""
        lines.append(f"| `{register.address:04X}` | `{name}` | {allowed} | {initial} | {register.meaning} |")
    return "\n".join(lines)


def printed_parts() -> tuple[str, ...]:
    """Return every part of the page that is printed from here."""
    return register_table(), f"```mermaid\n{states_diagram()}\n```"


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(printed_parts()) + "\n")
