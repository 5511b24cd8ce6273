"""`janus-dola serve`: images over HTTP, as OpenAI's clients ask for them, with one engine for all requests.

`app` answers requests, `worker` owns the engine in a thread of its own, and `queue` says who is drawn when.
"""
