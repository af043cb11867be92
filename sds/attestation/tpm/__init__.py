"""TPM 2.0: quotes, keys, the device, and the kind of evidence ``tpm``."""
