"""Other tools that watch a training, in an environment of their own."""
