"""Cron, intervals and the recrawl policy become due jobs, each fire once however many tickers
run.
"""
