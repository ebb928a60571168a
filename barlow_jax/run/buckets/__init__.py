"""Work folders in buckets: a run works in a folder of its host, and a mirror keeps what is complete in the bucket."""
