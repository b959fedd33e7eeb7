"""From anything a user calls a data set to tables with splits."""
