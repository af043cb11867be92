"""Fetches and checks the trust bundles of other trust domains, and gives them to the store.

Invariants: a bundle counts only for the trust domain that was configured, never for our own; after
a failed fetch the last good bundle stays; no fetched content decides where to fetch next.
"""
