"""Watch a training run: record it to a file, see it live, find where it goes wrong."""
