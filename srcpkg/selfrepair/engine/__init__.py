"""How a model is run: clean, ablated from the middle, one attention alone, and plain, to prove the others."""
