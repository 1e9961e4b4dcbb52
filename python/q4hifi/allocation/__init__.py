"""Mixed-precision allocation: what an error in each tensor costs, and the best types within a budget."""
