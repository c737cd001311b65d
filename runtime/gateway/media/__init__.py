"""Media of requests at a gateway: asked for, decoded and processed once, kept until the request has ended, brought to where they are encoded."""
