"""Prints the room of the file system on which a folder lies, or will: JSON with `place` (the
nearest folder that is there), `free` (bytes for this user), `inodes` (free, null where they are not
counted) and `writable`.

    python _room.py FOLDER
"""

import json
import os
import sys


def main() -> None:
    place = os.path.abspath(sys.argv[1])
    while not os.path.isdir(place) and place != "/":
        place = os.path.dirname(place)
    found = os.statvfs(place)
    made = {
        "place": place,
        "free": found.f_bavail * found.f_frsize,
        "inodes": found.f_favail if found.f_files else None,
        "writable": os.access(place, os.W_OK | os.X_OK),
    }
    print(json.dumps(made))


main()
