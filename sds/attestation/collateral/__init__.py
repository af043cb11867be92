"""Collateral: what manufacturers publish so that evidence can be verified (revocation lists, TCB).

Owns how it is fetched, stored, kept current, followed and given to a fleet. Which of it a kind of
evidence needs is in that kind's own package (:mod:`sds.attestation.tdx.material`, say).
"""
