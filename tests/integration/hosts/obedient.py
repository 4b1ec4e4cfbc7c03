"""A host for tests: says that it is ready, then runs the Python text that each ``run`` frame holds."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from somatize_worker.hosts.frames import Channel


def main() -> None:
    channel = Channel.from_fd(int(sys.argv[1]))
    channel.send(["ready", {"pid": os.getpid(), "python": "3"}])
    names: dict[str, object] = {"channel": channel}
    while True:
        try:
            frame = channel.receive()
        except EOFError:
            os._exit(0)
        if frame is None or frame[0] == "stop":
            return
        exec(frame[1]["do"], names)
        sys.stdout.flush()
        channel.send(["done", {"output": names.get("output"), "clean": True}])


if __name__ == "__main__":
    main()
