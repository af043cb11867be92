"""Collecting evidence inside a guest: configfs-tsm, and /dev/sev-guest for older kernels."""
