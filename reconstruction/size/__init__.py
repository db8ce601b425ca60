"""What is larger than memory, or than a machine: budgets, slabs, clusters."""
