"""Episodes: what one reading of a document leaves behind, packed into groups, and resumed from what was generated."""
