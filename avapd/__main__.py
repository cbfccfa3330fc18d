"""`python -m avapd` is `avapd`."""

from avapd.cli import main

if __name__ == "__main__":
    main()
