"""Jobs: what is asked for, the queue that loses none, the workers that do them. Nothing here imports torch."""
