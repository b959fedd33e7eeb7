"""An adapter on a model."""
