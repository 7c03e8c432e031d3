"""Calling reward endpoints, which are other people's servers.

pool              the endpoints that are open
endpoint          one of them: its queue, retries and circuit
batching          images of several requests in one call
retries           which failed calls are made again, and when
circuit_breaker   when an endpoint is not called at all
connections       one attempt over HTTP
redaction         what an endpoint says, without secrets
address_guard     which addresses may be connected to
sockets           TCP without waiting behind other calls
"""
