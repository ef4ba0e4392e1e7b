"""Baselines that every recommendation paper is compared with, under one protocol: full ranking, no sampling.

Each maps histories to ranked lists of item numbers `(users, k)`, padded with -1.
"""
