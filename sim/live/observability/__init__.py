"""What is seen of a running gateway: metrics, traces, logs, recordings, admin pages."""
