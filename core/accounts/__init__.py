"""Organizations, their people, and the keys and sessions by which they are recognised."""
