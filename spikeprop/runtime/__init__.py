"""What every room may use: batches, processes, signals, locks, atomic files, seeding, progress bars and the import policy."""
