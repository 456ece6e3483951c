"""Episodes: their conversations and answers, groups of episodes as flat arrays, and replay after a generator died."""
