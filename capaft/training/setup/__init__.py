"""Everything that is decided before the first step: task, data, model, adapter, rates and head."""
