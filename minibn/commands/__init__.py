"""The commands of `minibn`, one file each: `run` does it, `flags` reads what is given to it."""
