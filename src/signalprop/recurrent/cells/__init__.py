"""Recurrent cells over all steps, which write down their deltas on the way back."""
