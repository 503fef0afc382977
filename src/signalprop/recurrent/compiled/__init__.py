"""The time loops of recurrent layers in C++, built where a compiler is at hand."""
