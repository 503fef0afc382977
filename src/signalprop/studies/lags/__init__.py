"""The study `lstm`: cells on tasks with long time lags, and what their horizon foretells."""
