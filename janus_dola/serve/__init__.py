"""`janus-dola serve`: images over HTTP for clients of OpenAI's API, with one engine for all requests.

`api` answers requests, `worker` runs the engine in a thread of its own, and `queue` decides which images are drawn next.
"""
