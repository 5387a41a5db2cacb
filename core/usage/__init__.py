"""What each organization used: jobs, tokens, device time, credits and storage, by day or month."""
