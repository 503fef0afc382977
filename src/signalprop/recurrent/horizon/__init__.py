"""How far back in time credit reaches."""
