"""Files that are no pictures, for tests that decode none."""


def write(root, *names):
    """Files of 1, 2, ... bytes in a folder; returns its path."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i] * (i + 1)))
    return str(root)
