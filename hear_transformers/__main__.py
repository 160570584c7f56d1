"""`python -m hear_transformers` is the command `hear-transformers`."""

from .cli.hear_transformers import main

if __name__ == "__main__":
    main()
