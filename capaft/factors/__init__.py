"""NOLA and CapaBoost: from a seed and the trained parameters to the factors of an adapter."""
