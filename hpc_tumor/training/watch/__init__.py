"""Watch the ranks: progress marks, watchdog, heartbeat, bad steps, memory and use."""
