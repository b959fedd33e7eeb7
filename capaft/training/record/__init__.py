"""The files that a run leaves on disk, and the ways to read them again."""
