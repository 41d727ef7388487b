"""What any room may lean on: processes, signals, locks, atomic files, seeding, progress bars and which code may be imported."""
