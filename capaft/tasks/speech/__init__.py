"""Speech as models write it down: with one token a frame, or with a decoder."""
