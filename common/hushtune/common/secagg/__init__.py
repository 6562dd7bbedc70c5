"""Secure aggregation: many sites' vectors become their sum, and no single one can be read.

The protocol is that of Bonawitz et al. (CCS 2017), with the sparse graph of Bell et al. (SecAgg+,
CCS 2020) where there are many sites; the noise in the sum is Kairouz et al.'s (2102.06387).
"""
