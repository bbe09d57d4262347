"""Faults on purpose, and the proof of what is left: the history checker and `xnai chaos`."""
