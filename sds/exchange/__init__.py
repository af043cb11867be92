"""What both ends of the attested exchange share: items, wire form, challenge and binding.

Invariant: nothing here opens a connection or decides what is issued.
"""
