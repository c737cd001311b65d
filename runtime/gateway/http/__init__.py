"""The OpenAI-compatible HTTP server: a process of its own before the gRPC gateway, which it calls as any client does (`runtime/client`).

door.py        every request: id, authorisation, limits, metrics, errors in OpenAI's form
app.py         the routes
fields.py      typed fields of a JSON body; what is unknown or not supported is refused by name
chat.py, completions.py      bodies to `Generation`s, chunks to OpenAI's JSON
generation.py  one or several prompts as one stream of chunks
answer.py      a generation as one JSON object or as server-sent events; ends with its client
probes.py      health, and readiness through the real queue
server.py      uvicorn, TLS, an orderly end
"""
