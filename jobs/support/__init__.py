"""What jobs share: starting Ray, the run folder, following a job, help, and tools that no person starts daily."""
