"""What a step computes: plans, and the keys and values they keep."""
