"""Agents: async functions over tokens. `agent.entrypoint` in the config names the one that runs."""
