"""One small module a peer, each run by the interpreter of its own environment: standard library,
the peer, no more.
"""
