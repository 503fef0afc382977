"""What is written in C++, built on first use where a compiler is at hand."""
