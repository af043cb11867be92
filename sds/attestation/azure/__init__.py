"""Azure's confidential VMs: evidence through the paravisor's vTPM."""
