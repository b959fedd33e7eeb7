"""Images and recordings: opening them, and finding them in folders and tables."""
