"""`python -m benchmarks.broken_programs`."""

from benchmarks.broken_programs.run import main

if __name__ == "__main__":
    main()
