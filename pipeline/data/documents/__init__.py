"""Where problems come from: one file per source, each a pure function from its inputs to `Problem`s."""
