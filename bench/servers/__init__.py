"""What is measured: avapd and its peers, how they are built and started, and the table they serve."""
