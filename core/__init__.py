"""The domain: what the service knows and decides, without HTTP and without torch."""
