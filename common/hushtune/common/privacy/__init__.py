"""Plan, accountant, noise, ledger and statement: the parts that keep and prove the promise.

The parts meet in `plan.PrivacyPlan` only: noise knows no accountant, the accountant knows no
ledger. Import the modules by name; this file imports none of them, so that it costs nothing.
"""
