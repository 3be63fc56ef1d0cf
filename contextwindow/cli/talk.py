"""A conversation on the terminal."""

from __future__ import annotations

import click

from contextwindow import (
    ConfigError,
    ContextWindow,
    ContextWindowError,
    Model,
    OpenAIChatModel,
    OpenAIResponsesModel,
    Stream,
)
from contextwindow.cli.terminal import harmless


def run(database: str, model: str, context: str, system: str | None, base_url: str | None) -> None:
    """Read lines and answer them until the input ends."""
    chosen = model if base_url is None else _model_at(model, base_url)
    with ContextWindow(database, context, model=chosen, system_prompt=system) as window:
        for turn in window.interrupted():
            click.echo(f"A reply was cut off after: …{harmless(turn.partial_text[-60:])}")
            if click.confirm("Go on with it?", default=True):
                _print(window.resume_streaming(turn.id))
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                click.echo()
                return
            if line in ("/quit", "/exit"):
                return
            if line:
                window.add_prompt(line)
                _print(window.call_model_streaming())


def _print(stream: Stream) -> None:
    """Print a reply while it arrives; Ctrl-C stops it, and what was shown stays."""
    try:
        with stream:
            for text in stream.text_deltas():
                click.echo(harmless(text), nl=False)
        click.echo()
    except KeyboardInterrupt:
        click.echo(" [stopped]")
    except ContextWindowError as error:
        click.echo(f"\n{type(error).__name__}: {harmless(str(error))}", err=True)


def _model_at(model: str, base_url: str) -> Model:
    kind, _, name = model.partition(":")
    if kind == "openai" and name:
        return OpenAIResponsesModel(name, base_url=base_url)
    if kind == "openai-chat" and name:
        return OpenAIChatModel(name, base_url=base_url)
    raise ConfigError(
        f"with --base-url the model is openai:NAME or openai-chat:NAME, not {model!r}"
    )
