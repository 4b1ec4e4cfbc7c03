"""``python -m somatize_worker``: the command line."""

from somatize_worker.cli import main

if __name__ == "__main__":
    main()
