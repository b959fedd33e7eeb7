"""Images and recordings: opened, found in folders, named by tables."""
