"""Read whatever a user calls a data set into tables with splits."""
