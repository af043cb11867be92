"""Intel TDX: quotes, their PCK chains and collateral."""
