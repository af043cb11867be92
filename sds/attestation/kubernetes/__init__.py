"""Service-account tokens as evidence, for nodes without confidential hardware."""
