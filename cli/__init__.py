"""The `xnai` command: composes all other packages, and talks to a running stack over HTTP."""
