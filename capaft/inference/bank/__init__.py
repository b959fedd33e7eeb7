"""Many adapters over one base model: kept as coefficients, expanded when they are used."""
