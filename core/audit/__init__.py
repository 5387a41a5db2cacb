"""Who did what to which object, and when: written with the deed, never changed."""
