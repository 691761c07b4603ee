"""Log-likelihoods of many windows on a live model: each distinct prefix runs once."""
