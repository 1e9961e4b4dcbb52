"""Mixed-precision allocation: the sensitivity of each tensor, and the best types within a budget."""
