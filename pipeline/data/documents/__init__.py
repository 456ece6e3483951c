"""Where problems come from: one file a source, each a pure function from its inputs to `Problem`s."""
