"""The training service: keeps the ledger, hands out leases, trains with DeepSpeed and publishes weights."""
