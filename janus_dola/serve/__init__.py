"""`janus-dola serve`: images over HTTP for clients of OpenAI's API, with one engine for all requests.

`api` answers requests, `engine_thread` draws, and `queue` decides which images are drawn next.
"""
