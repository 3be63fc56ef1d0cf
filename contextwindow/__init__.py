"""Conversations with language models that survive.

Names are loaded when they are first used: importing the package loads no provider SDK and no
database library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextwindow.chunks import (
        ChildLinked,
        Compacted,
        Done,
        ReasoningDelta,
        RefusalDelta,
        Resumed,
        Retrying,
        StreamChunk,
        StreamFailed,
        StreamStart,
        TextDelta,
        ToolCallDelta,
        ToolEnd,
        ToolOutputDelta,
        ToolStart,
        UsageReport,
    )
    from contextwindow.compaction import (
        Compaction,
        CompactionResult,
        DropToolOutputs,
        NoCompaction,
        Summarize,
        SummaryResult,
        Trim,
    )
    from contextwindow.errors import (
        AuthenticationFailed,
        CallbackExpired,
        ConfigError,
        ContentBlocked,
        ContextLengthExceeded,
        ContextNotFound,
        ContextWindowError,
        InvalidRequest,
        MiddlewareError,
        ModelError,
        ModelTimeout,
        NotAContextDatabase,
        OutputInvalid,
        Overloaded,
        RateLimited,
        RecordCorrupt,
        SchemaTooNew,
        StoreBusy,
        StoreError,
        StoreFull,
        StoreReadOnly,
        StoreReplaced,
        StreamInterrupted,
        ToolError,
        TurnBusy,
        TurnLost,
    )
    from contextwindow.middleware import DROP, CallStart, Middleware, handler
    from contextwindow.models.anthropic import AnthropicModel, ClaudeModel
    from contextwindow.models.base import Model
    from contextwindow.models.gemini import GeminiModel
    from contextwindow.models.openai_chat import OpenAIChatModel
    from contextwindow.models.openai_responses import OpenAIResponsesModel
    from contextwindow.models.prices import Prices
    from contextwindow.options import CallArguments
    from contextwindow.reader import ContextReader
    from contextwindow.recalling import recall
    from contextwindow.records import (
        Attachment,
        Call,
        CallSize,
        Context,
        ContextPage,
        ContextStats,
        Migration,
        Record,
        RecordType,
        Reply,
        SearchResult,
        TokenUsage,
        ToolCall,
        Turn,
        Usage,
    )
    from contextwindow.sinks import (
        AsyncQueueSink,
        AsyncSink,
        CallbackSink,
        Profile,
        QueueSink,
        Sink,
        SSESink,
        WebSocketSink,
        pump,
        pump_async,
    )
    from contextwindow.store.compacting import CompactionEvent
    from contextwindow.store.examination import Examination, Problem
    from contextwindow.store.explaining import Explanation
    from contextwindow.store.store import Store
    from contextwindow.streams import AsyncStream, Stream
    from contextwindow.tools import Tool, ToolContext, tool
    from contextwindow.window import ContextWindow
    from contextwindow.window_async import AsyncContextWindow

__version__ = "0.1.0"

__all__ = [
    "DROP",
    "AnthropicModel",
    "AsyncContextWindow",
    "AsyncQueueSink",
    "AsyncSink",
    "AsyncStream",
    "Attachment",
    "AuthenticationFailed",
    "Call",
    "CallArguments",
    "CallSize",
    "CallStart",
    "CallbackExpired",
    "CallbackSink",
    "ChildLinked",
    "ClaudeModel",
    "Compacted",
    "Compaction",
    "CompactionEvent",
    "CompactionResult",
    "ConfigError",
    "ContentBlocked",
    "Context",
    "ContextLengthExceeded",
    "ContextNotFound",
    "ContextPage",
    "ContextReader",
    "ContextStats",
    "ContextWindow",
    "ContextWindowError",
    "Done",
    "DropToolOutputs",
    "Examination",
    "Explanation",
    "GeminiModel",
    "InvalidRequest",
    "Middleware",
    "MiddlewareError",
    "Migration",
    "Model",
    "ModelError",
    "ModelTimeout",
    "NoCompaction",
    "NotAContextDatabase",
    "OpenAIChatModel",
    "OpenAIResponsesModel",
    "OutputInvalid",
    "Overloaded",
    "Prices",
    "Problem",
    "Profile",
    "QueueSink",
    "RateLimited",
    "ReasoningDelta",
    "Record",
    "RecordCorrupt",
    "RecordType",
    "RefusalDelta",
    "Reply",
    "Resumed",
    "Retrying",
    "SSESink",
    "SchemaTooNew",
    "SearchResult",
    "Sink",
    "Store",
    "StoreBusy",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreReplaced",
    "Stream",
    "StreamChunk",
    "StreamFailed",
    "StreamInterrupted",
    "StreamStart",
    "Summarize",
    "SummaryResult",
    "TextDelta",
    "TokenUsage",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolContext",
    "ToolEnd",
    "ToolError",
    "ToolOutputDelta",
    "ToolStart",
    "Trim",
    "Turn",
    "TurnBusy",
    "TurnLost",
    "Usage",
    "UsageReport",
    "WebSocketSink",
    "handler",
    "pump",
    "pump_async",
    "recall",
    "tool",
]

_MODULES = {
    "chunks": (
        "ChildLinked Compacted Done ReasoningDelta RefusalDelta Resumed Retrying StreamChunk "
        "StreamFailed StreamStart TextDelta ToolCallDelta ToolEnd ToolOutputDelta ToolStart "
        "UsageReport"
    ),
    "compaction": (
        "Compaction CompactionResult DropToolOutputs NoCompaction Summarize SummaryResult Trim"
    ),
    "store.compacting": "CompactionEvent",
    "errors": (
        "AuthenticationFailed CallbackExpired ConfigError ContentBlocked ContextLengthExceeded "
        "ContextNotFound ContextWindowError InvalidRequest MiddlewareError ModelError "
        "ModelTimeout NotAContextDatabase OutputInvalid Overloaded RateLimited RecordCorrupt "
        "SchemaTooNew StoreBusy StoreError StoreFull StoreReadOnly StoreReplaced "
        "StreamInterrupted ToolError TurnBusy TurnLost"
    ),
    "middleware": "DROP CallStart Middleware handler",
    "models.base": "Model",
    "models.anthropic": "AnthropicModel ClaudeModel",
    "models.gemini": "GeminiModel",
    "models.openai_chat": "OpenAIChatModel",
    "models.openai_responses": "OpenAIResponsesModel",
    "models.prices": "Prices",
    "options": "CallArguments",
    "reader": "ContextReader",
    "recalling": "recall",
    "records": (
        "Attachment Call CallSize Context ContextPage ContextStats Migration Record RecordType "
        "Reply SearchResult TokenUsage ToolCall Turn Usage"
    ),
    "store.examination": "Examination Problem",
    "store.explaining": "Explanation",
    "sinks": (
        "AsyncQueueSink AsyncSink CallbackSink Profile QueueSink SSESink Sink WebSocketSink pump "
        "pump_async"
    ),
    "store.store": "Store",
    "streams": "AsyncStream Stream",
    "tools": "Tool ToolContext tool",
    "window": "ContextWindow",
    "window_async": "AsyncContextWindow",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
