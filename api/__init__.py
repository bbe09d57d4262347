"""HTTP in, JSON out: validates, writes and reads the ledger. Holds no job logic and loads no
engine.
"""
