"""What every task has: columns, features, batches, and how a data set tells which task it is for."""
