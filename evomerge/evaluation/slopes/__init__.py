"""A smooth fitness that can be differentiated, and its gradient on a live model."""
