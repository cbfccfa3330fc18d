"""What people read: statistics over the rounds, the page, its plots and the arithmetic of capacity."""
