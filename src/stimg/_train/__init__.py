"""Training loops and what a batch is made of."""
