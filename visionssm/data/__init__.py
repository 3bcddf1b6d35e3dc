"""Small real data sets, made on the spot: digits, and scenes of digits."""

MOST_WORKERS = 1024  # loader processes; a typing error must not start a million


def check_workers(workers: int) -> None:
    """Raise `ValueError` unless a loader may have so many processes."""
    if not 0 <= workers <= MOST_WORKERS:
        raise ValueError(f'workers is {workers}; allowed are 0 to {MOST_WORKERS}')
