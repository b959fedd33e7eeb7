"""Using a finished adapter: predictions, texts, and many adapters over one base."""
