"""`python -m feedworks` is the command `feedworks`."""

from feedworks.cli import main

if __name__ == "__main__":
    main()
