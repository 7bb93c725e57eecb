"""Committed shards -> images: the only door through which a consumer sees a run."""
