"""The parts of a run's settings: one file for each stage that reads them."""
