"""A progress bar on stderr, only where somebody looks at it."""


class Progress:
    """`with Progress("cases") as advance: advance("case 1", total)`: one step done, rate and time left shown."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self.bar = Bar(console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(what, total=None)

    def __call__(self, description: str, total: int) -> None:
        self.bar.update(self.task, advance=1, total=total, description=description)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
