"""Options whose text several commands read."""

from edgeseg.errors import EdgesegError


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,2` as (1, 2)."""
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise EdgesegError(f"{option} {text}: write whole numbers, as 1,2") from None


def stream_count(text: str | None) -> int | None:
    """None: not asked for; 0: auto."""
    if text is None or text == "auto":
        return None if text is None else 0
    if (count := whole_numbers(text, "--streams")) and len(count) == 1 and count[0] > 0:
        return count[0]
    raise EdgesegError(f"--streams {text}: write auto or a number above 0")
