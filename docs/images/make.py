"""Draws the pictures of the documents: ``python docs/images/make.py``."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.terminal_theme import TerminalTheme
from rich.text import Text

from contextwindow import ContextWindow, Store
from contextwindow.cli.styles import console
from contextwindow.cli.talk import Talk
from contextwindow.testing import ScriptedModel

FOLDER = Path(__file__).resolve().parent
ASKED = "What happens to a reply when its process is killed?"
ANSWERED = """\
Nothing, if it was **written down first**:

1. each chunk is committed *before* it is shown,
2. the next process finds the turn dead and *settles* it,
3. `resume_streaming()` goes on in the middle of the sentence.

| killed after | in the database | lost |
|---|---|---|
| 1 chunk | 1 chunk | nothing |
| 130 chunks | 130 chunks | nothing |

```python
for turn in window.interrupted():
    window.resume(turn.id)
```
"""
THEME = TerminalTheme(
    (250, 250, 250),
    (40, 42, 48),
    [
        (40, 42, 48),
        (176, 40, 40),
        (40, 120, 60),
        (140, 100, 0),
        (40, 90, 170),
        (150, 50, 140),
        (20, 120, 130),
        (120, 124, 130),
    ],
)


def draw_chat() -> str:
    """A turn of ``contextwindow chat``, as SVG that fetches nothing."""
    out = console(
        io.StringIO(), record=True, force_terminal=True, color_system="truecolor", width=80
    )
    with Store(":memory:") as store:
        model = ScriptedModel([ANSWERED])
        with ContextWindow(store, "alice", model=model) as window:
            window.add_prompt(ASKED)
            window.call_model()
        talk = Talk(store, "alice", model, out)
        talk.begin()
        for typed in ("/fork idea", "/undo", "/help"):
            out.print(Text(f"> {typed}"))
            talk.take(typed)
        talk.close()
    drawn = out.export_svg(title="contextwindow chat bot.db", theme=THEME, unique_id="chat")
    # A font from elsewhere would not be loaded in a page, and should not be asked for.
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)


if __name__ == "__main__":
    (FOLDER / "chat.svg").write_text(draw_chat(), "utf-8")
