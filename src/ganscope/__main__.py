"""`python -m ganscope` is the console script."""

from ganscope.cli import main

if __name__ == "__main__":
    main()
