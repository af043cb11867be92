"""Federation: trust bundles of other trust domains, fetched, checked and given to the store.

Invariants: a bundle is taken only for the trust domain that was configured, never for our own; a
failed fetch keeps the last good bundle; nothing that was fetched decides where to fetch next.
"""
