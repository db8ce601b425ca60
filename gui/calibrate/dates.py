"""Times and dates in words, for people."""

from __future__ import annotations

from datetime import UTC, datetime


def time_words(seconds: float) -> str:
    """Return a time for people: "8 s", "2 min 5 s", "1 h 12 min"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def when(created: str) -> str:
    """Return a date and time of a file for people, in the time of this place."""
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return created


def age_words(created: str, now: datetime | None = None) -> str:
    """Return how long ago something was: "3 h ago"; empty where the date is none."""
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return ""
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    age_s = ((now or datetime.now(UTC)) - then).total_seconds()
    if age_s < 90:
        return "just now"
    if age_s < 2 * 3600:
        return f"{age_s / 60:.0f} min ago"
    return f"{age_s / 3600:.0f} h ago" if age_s < 2 * 86400 else f"{age_s / 86400:.0f} days ago"
