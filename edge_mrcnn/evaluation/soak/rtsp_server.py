"""A camera over RTSP: GStreamer's server, run by the system's Python, which has its bindings.

It takes a port, 0 for a free one, and a rate, prints the port and ends when its input ends. It knows no faults:
whoever started it stops or kills the process.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module


def main() -> None:
    """Serve until the input ends."""
    gi = import_module("gi")
    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    glib, gst, rtsp = (import_module(f"gi.repository.{name}") for name in ("GLib", "Gst", "GstRtspServer"))
    port, rate = sys.argv[1], round(float(sys.argv[2]))
    gst.init(None)
    server, factory = rtsp.RTSPServer(), rtsp.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory.set_shared(True)
    factory.set_launch(
        f"( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=640,height=480,framerate={rate}/1 "
        "! jpegenc quality=80 ! rtpjpegpay name=pay0 pt=26 )"
    )
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit(f"port {port} is in use")
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    loop = glib.MainLoop()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        glib.idle_add(loop.quit)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
