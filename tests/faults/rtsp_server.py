"""A camera that misbehaves when told to: GStreamer's RTSP server, run by Debian's Python.

It prints the port it listens on, then takes commands on its standard input, one a line: `stall` and `resume` hold back
pictures while the session stays open; `size 320x240` changes the resolution; `kick` throws every client out.
"""

from __future__ import annotations

import argparse
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

# One thread makes one slice a picture, as cameras do.
PAYLOADS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast threads=1 bitrate=400 key-int-max=10 "
    "! rtph264pay name=pay0 pt=96 config-interval=-1",
    "mjpeg": "jpegenc quality=60 ! rtpjpegpay name=pay0 pt=26",
}
ROLE = "viewer"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="0")
    parser.add_argument("--codec", choices=PAYLOADS, default="h264")
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--fps", type=int, default=15)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--digest", action="store_true")
    return parser.parse_args()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def caps(size: str) -> str:
    width, height = size.split("x")
    return f"video/x-raw,width={width},height={height}"


class Camera:
    """One mount point; all its clients see the same pictures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.media: GstRtspServer.RTSPMedia | None = None
        self.stalled = False
        self.size = options.size
        self.factory = GstRtspServer.RTSPMediaFactory()
        self.factory.set_shared(True)
        self.factory.set_launch(
            f"( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,framerate={options.fps}/1 "
            f"! videoscale ! capsfilter name=size ! valve name=valve ! {PAYLOADS[options.codec]} )"
        )
        self.factory.connect("media-configure", self.configure)
        if options.user:
            permissions = Gst.Structure.new_empty(ROLE)
            permissions.set_value("media.factory.access", True)
            permissions.set_value("media.factory.construct", True)
            self.factory.add_role_from_structure(permissions)

    def configure(self, _factory: object, media: GstRtspServer.RTSPMedia) -> None:
        self.media = media
        media.connect("unprepared", self.forget)
        self.apply()

    def forget(self, media: GstRtspServer.RTSPMedia) -> None:
        if self.media is media:
            self.media = None

    def apply(self) -> None:
        if self.media is not None:
            pipeline = self.media.get_element()
            pipeline.get_by_name("size").set_property("caps", Gst.Caps.from_string(caps(self.size)))
            pipeline.get_by_name("valve").set_property("drop", self.stalled)


def protect(server: GstRtspServer.RTSPServer, options: argparse.Namespace) -> None:
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", ROLE)
    if options.digest:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(options.user, options.password, token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(options.user, options.password), token)
    server.set_auth(auth)


def obey(line: str, server: GstRtspServer.RTSPServer, cameras: list[Camera]) -> bool:
    """Carry a command out; False, as GLib wants it of what runs once."""
    command, _, value = line.strip().partition(" ")
    if command == "kick":
        server.client_filter(lambda _server, _client: GstRtspServer.RTSPFilterResult.REMOVE)
    for camera in cameras:
        if command in ("stall", "resume"):
            camera.stalled = command == "stall"
        elif command == "size":
            camera.size = value
        camera.apply()
    say("done")
    return False


def main() -> None:
    options = parse()
    Gst.init(None)
    missing = [name for name in ("x264enc", "rtph264pay", "jpegenc") if not Gst.ElementFactory.find(name)]
    if missing:
        sys.exit(f"GStreamer has no {', '.join(missing)}")
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    if options.user:
        protect(server, options)
    cameras = [Camera(options) for _ in range(options.cameras)]
    for number, camera in enumerate(cameras):
        server.get_mount_points().add_factory(f"/{number}", camera.factory)
    if not server.attach(None):
        sys.exit(f"port {options.port} is in use")
    say(str(server.get_bound_port()))
    loop = GLib.MainLoop()

    def read_commands() -> None:
        for line in sys.stdin:
            GLib.idle_add(obey, line, server, cameras)
        GLib.idle_add(loop.quit)  # whoever started it is gone

    threading.Thread(target=read_commands, daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
