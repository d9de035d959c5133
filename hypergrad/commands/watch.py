"""``hypergrad watch``: the report on 127.0.0.1, refreshed while a run goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import final


@final
@dataclass(frozen=True)
class Watch:
    """Serve a run's report on this machine, and refresh it while the run goes on. Ctrl-C ends it.

    Only the page is served, read-only. Other machines are refused unless allow_remote is given.

    Attributes:
        dir: the run's directory, as for hypergrad report.
        port: port to listen on, 0 for any that is free.
        host: address to listen on.
        allow_remote: let other machines read the report, with host 0.0.0.0 for instance.
        until_ended: end by itself once the run has ended.
        json: print the address as a JSON object.

    Example:
        $ hypergrad watch hypergrad-demo --port 0 --until-ended
    """

    dir: Path
    port: int = 8617
    host: str = "127.0.0.1"
    allow_remote: bool = False
    until_ended: bool = False
    json: bool = False

    def __call__(self) -> int:
        """Serve until Ctrl-C, and return the exit status."""
        from hypergrad.report.server import make_server

        with make_server(self.dir, host=self.host, port=self.port, allow_remote=self.allow_remote) as server:
            name, port = str(server.server_address[0]), int(server.server_address[1])
            url = f"http://{f'[{name}]' if ':' in name else name}:{port}/"
            line = json.dumps({"url": url}) if self.json else f"{url} shows {self.dir}; Ctrl-C ends it"
            print(line, flush=True)
            if self.until_ended:
                server.end_with_the_run()
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                if not self.json:
                    print("\nended; hypergrad report writes the page to a file")
        return 0
