"""Whether a model can take the attachments that it has yet to see."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from contextwindow.errors import ConfigError, InvalidRequest
from contextwindow.models.base import Model
from contextwindow.records import Attachment, Record, RecordType

_OF_MODELS: Final = (RecordType.MODEL_RESPONSE, RecordType.REASONING, RecordType.TOOL_CALL)


def check_taken(model: Model | None, attachments: Sequence[Attachment]) -> None:
    """Refuse what *model* cannot take, before it is stored; None takes everything.

    Raises:
        ConfigError: it names the attachment, the model and the reason.
    """
    for one in attachments if model is not None else ():
        problem = model.attachment_problem(one)  # type: ignore[union-attr]  # not None here
        if problem is not None:
            raise ConfigError(f"{_name(one)} cannot be attached for {model!r}: {problem}")


def check_unanswered(model: Model, records: Sequence[Record]) -> None:
    """Refuse a call that would leave out an attachment that no model has answered yet.

    Those behind which a model has answered are older: a note stands in their place.

    Raises:
        InvalidRequest: it names the attachment, the model and the reason.
    """
    for record in takewhile(lambda one: one.source not in _OF_MODELS, reversed(records)):
        for one in record.attachments:
            problem = model.attachment_problem(one)
            if problem is not None:
                raise InvalidRequest(
                    f"{model!r} cannot take {_name(one)} of record {record.id}: {problem}; ask "
                    f"another model, or leave the prompt out with set_live([{record.id}], False)",
                    provider=model.provider,
                )


def _name(attachment: Attachment) -> str:
    name = f" {attachment.name!r}" if attachment.name else ""
    return f"attachment{name} ({attachment.media_type})"
