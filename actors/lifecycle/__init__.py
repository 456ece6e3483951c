"""What pools of actors have in common: starting, replacing and closing them, and telling why one failed."""
