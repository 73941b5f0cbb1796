"""The network side of the learner: leases out, groups in, shards to ranks."""
