"""mistral-proxy: OpenAI SDKs in front, Mistral behind."""

__version__ = "0.1.0"
