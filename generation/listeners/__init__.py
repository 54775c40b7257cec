"""What follows the sampling: stopping, streaming, the trace."""
