"""One module a kind: what a job of that kind does."""
