"""An HTTP server for fakes that many agents connect to at once."""

from __future__ import annotations

from http.server import ThreadingHTTPServer


class CrowdServer(ThreadingHTTPServer):
    """Lets connections wait. The standard one has a queue of five, and one that finds it full tries again after a second, which a
    test would take for a pause of the mesh."""

    daemon_threads = True
    request_queue_size = 1024
