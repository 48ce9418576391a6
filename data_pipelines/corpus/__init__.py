"""The data plant: many sources to one prepared folder per expert."""
