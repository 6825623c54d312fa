"""``python -m pyrovae``: the command where its script is not on the path."""

from pyrovae.cli import main

if __name__ == "__main__":
    main()
