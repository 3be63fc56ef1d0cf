"""For testing what is built on contextwindow: a model with a script, and a server with faults.

Names are loaded when they are first used, so that ``python -m`` finds the server not yet loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from contextwindow.testing.fake_provider import FakeProvider
    from contextwindow.testing.fake_reply import FakeReply
    from contextwindow.testing.script import ScriptedReply
    from contextwindow.testing.scripted import ScriptedModel, ScriptedRequest
    from contextwindow.testing.wire import FakeRequest

__all__ = [
    "FakeProvider",
    "FakeReply",
    "FakeRequest",
    "ScriptedModel",
    "ScriptedReply",
    "ScriptedRequest",
]

_MODULES: Final = {
    "FakeProvider": "fake_provider",
    "FakeReply": "fake_reply",
    "FakeRequest": "wire",
    "ScriptedModel": "scripted",
    "ScriptedReply": "script",
    "ScriptedRequest": "scripted",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
