"""Self-normalizing networks on real tables: UCI-121, HTRU2 and Tox21."""
