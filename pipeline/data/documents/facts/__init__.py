"""Made-up facts hidden in real prose: questions of one and of two hops, in ordinary English."""
