"""How the terminal writes a value."""


def duration(seconds: float) -> str:
    """90 -> "1m30s"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
