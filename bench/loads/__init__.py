"""Who asks: closed and open loops of calls, from the client core."""
