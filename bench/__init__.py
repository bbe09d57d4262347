"""Measures xnai beside other queues on the same servers, in one run. No package of the product
imports it.
"""
