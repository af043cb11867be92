"""The certificate authority: the server that appraises evidence, decides and signs."""
