"""The two papers: from a seed and trained coefficients to a factor."""
