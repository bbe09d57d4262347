"""How each fault is done and undone, by what it is done to."""
