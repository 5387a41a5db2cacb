"""The workers and their devices, as they last reported themselves."""
