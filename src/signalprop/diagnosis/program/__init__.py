"""Rules about the program around a network: outputs, targets, modes, rates, optimizer."""
