"""What every backend shares: process 1 of a sandbox, how it gets in, and the wire to it. No backend itself."""
