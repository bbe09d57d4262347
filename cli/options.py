"""What all verbs share: the settings, read once a command."""

import typer

from runtime.settings import Settings, load_settings


def settings_of(context: typer.Context) -> Settings:
    """The settings of this invocation; built on first use, so that `--help` needs none."""
    root = context.find_root()
    if not isinstance(root.obj, Settings):
        root.obj = load_settings()
    return root.obj
