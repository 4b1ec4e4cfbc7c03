"""One module for each contestant. ``play(work)`` is a context in which its jobs can be run, a round at a time."""
