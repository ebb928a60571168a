"""What a run needs around its loop: flags, the work folder, stops, checkpoints, the other processes, what it shows."""
