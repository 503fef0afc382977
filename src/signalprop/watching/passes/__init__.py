"""Forward and backward passes of the user's own loop, seen while they happen."""
