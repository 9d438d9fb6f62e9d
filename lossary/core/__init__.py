"""What every objective stands on: rows and entries, checks, numerics, the module base and the register."""
