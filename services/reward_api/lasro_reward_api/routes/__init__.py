"""The routes of the reward API: what they read, which part of the service they call, what they answer."""
