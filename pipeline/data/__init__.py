"""Problems: sample files, their checks and quarantine, the order in which a run reads them, how samples are made."""
