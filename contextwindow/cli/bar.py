"""How far long work is, for whoever watches a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from contextwindow.cli.styles import console, is_live

Tell = Callable[[int, int], object]


@contextmanager
def bar(what: str, *, lazy: bool = False) -> Iterator[Tell | None]:
    """A progress bar on standard error, gone at the end; None where that is no terminal.

    Args:
        what: is done, in a word or two.
        lazy: show nothing before the first word of how far it is.
    """
    out = console(stderr=True)
    if not is_live(out):
        yield None
        return
    shown = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out,
        transient=True,
    )
    task = shown.add_task(what, total=None)

    def tell(done: int, total: int) -> None:
        shown.start()
        shown.update(task, completed=done, total=total)

    if not lazy:
        shown.start()
    try:
        yield tell
    finally:
        shown.stop()
