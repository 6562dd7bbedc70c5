"""How the server makes one adapter of many updates: check, estimate, optimise; values, not classes.

An aggregator is composed of an estimate of the sites' mean change and a server optimiser; a LoRA
rule says which tensors are trained at all.
"""
