"""Which run is taken: what is considered, what it is called, why, and what would fit instead."""
