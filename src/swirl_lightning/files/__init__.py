"""Reading and writing of files that may be damaged, foreign or cut short; locks and hashes."""
