"""What a user can set, and from where."""
