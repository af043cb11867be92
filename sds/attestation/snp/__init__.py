"""AMD SEV-SNP: reports, their certificate chains, revocation, and a simulated chip."""
