"""Rules over time: what a watched training run tells of itself while it goes on."""
